"""The README's table of `make bench`, from its record."""

import json
from pathlib import Path
from typing import Any

from tests.support.readmes import rewrite

ROOT = Path(__file__).parents[3]
RECORD = ROOT / "configs" / "results" / "bench_peers.json"
MARKS = ("<!-- peers -->", "<!-- end of peers -->")
NAMES = {"hand": "the hand loop against itself", "transformers": "Hugging Face Trainer", "lightning": "Lightning Trainer"}
NAMES |= {"fabric": "Lightning Fabric", "accelerate": "Accelerate", "deepspeed": "DeepSpeed (ZeRO-0)"}


def label(row: dict[str, Any]) -> str:
    """Which work a row is of."""
    return f"{row['work']} {row['processes']} {row['mode']}"


def markdown(record: dict[str, Any]) -> str:
    """What the record shows: ratios to the hand loop, and beside them what no load of a machine changes."""
    good = [row for row in record["rows"] if label(row) not in record["void"]]
    rows = {(row["work"], row["processes"], row["peer"], row["mode"]): row for row in good}
    hand = rows["tiny", 1, "hand", "count"]
    lines = [
        "| CPU time of a step, by hand = 1 | tiny, silent | tiny, logging | extra us | extra calls | extra operations | real |",
        "|---|---|---|---|---|---|---|",
    ]
    for peer in [key[2] for key in rows if key[0] == "tiny" and key[1] == 1 and key[3] == "log"]:
        plain, log = rows.get(("tiny", 1, peer, "plain")), rows["tiny", 1, peer, "log"]
        count, real = rows.get(("tiny", 1, peer, "count")), rows.get(("real", 1, peer, "log"))
        more = [f"{count[name] - hand[name]:.0f}" if count else "" for name in ("calls", "operations")]
        cells = [NAMES.get(peer, peer), _ratio(plain), _ratio(log), str(log["extra_us"]), *more, _ratio(real)]
        lines.append(f"| {' | '.join(cells)} |")
    two = [f"{work} {_ratio(rows.get((work, 2, 'widebatch', 'log')))}" for work in ("tiny", "real")]
    watch = rows["tiny", 1, "widebatch", "watch"]
    peaks = [rows["real", 1, peer, "memory"]["peak_mib"] for peer in ("widebatch", "hand")]
    machine = record["machine"]
    lines += [
        "",
        f"{machine['cores']} cores ({machine['cpu'] or 'unknown'}), one thread, {record['when']}; median of",
        f"{record['pairs']} pairs in each of 5 rounds (3 for real and for two processes), lowest and highest round in brackets.",
        f"In two processes: {', '.join(two)}. Of the training thread the journal takes {watch['journal']:.1f} us a step,",
        f"a live line on a terminal {watch['terminal']:.1f}, W&B {watch['W&B']:.1f}.",
        f"Peak memory on real: {peaks[0]:.0f} MiB, by hand {peaks[1]:.0f}.",
    ]
    return "\n".join(lines) + "\n"


def _ratio(row: dict[str, Any] | None) -> str:
    return f"{row['ratio']:.3f} ({row['low']:.2f}-{row['high']:.2f})" if row else "-"


def write_readme(record: dict[str, Any]) -> None:
    """Put the table between the two marks."""
    rewrite(MARKS, markdown(record))


if __name__ == "__main__":
    write_readme(json.loads(RECORD.read_text()))
