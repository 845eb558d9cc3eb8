"""The README's lines on the cost of start, checkpoint and data, from their records: `python -m tests.support.costs` writes them."""

import json
from typing import Any

from tests.support.processes import ROOT
from tests.support.readmes import rewrite

RESULTS = ROOT / "configs" / "results"
RECORDS = ("start", "checkpoint", "data_wait")
MARKS = ("<!-- costs -->", "<!-- end of costs -->")


def read(name: str) -> dict[str, Any]:
    """A record."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def text() -> str:
    """What the records say."""
    start, saved, waited = (read(name) for name in RECORDS)
    ours, hand, offline, launcher, theirs, planning = (
        f"{start['cpu_s'][what]:.2f}"
        for what in (
            "widebatch",
            "by hand",
            "widebatch, W&B offline",
            "widebatch launch, itself",
            "accelerate launch, itself",
            "widebatch plan",
        )
    )
    million, size, stop, write = saved["parameters"] / 1e6, saved["bytes"] / 1e9, saved["stop_s"], saved["write_s"]
    stopped, slowed, counted = (saved[name] for name in ("stop_over_memcpy", "step_writing_over_idle", "step_counting_over_idle"))
    waits = ",\n".join(
        f"{row['recipe']} {row['data_wait_pct']:.2g} % and {row['by_hand_pct']:.2g} % of {row['step_ms']:.1f} ms"
        for row in waited["rows"]
    )
    return f"""To the first step of digits we take {ours} CPU seconds, a loop by hand {hand}; with W&B, which starts beside
training, {offline}. `widebatch launch` itself takes {launcher} and has no torch in it, `accelerate launch` {theirs},
`widebatch plan` {planning} (`{start["command"]}`).

A checkpoint of {million:.0f} million parameters with Adam, {size:.1f} GB, holds training up for {stop:.2f} s,
{stopped:.2f} times a plain copy of the same bytes. It is written in {write:.1f} s beside training, in which a step takes
{slowed:.2f} times as long; beside a process that only counts it takes {counted:.2f} times as long (`{saved["command"]}`,
medians of {saved["rounds"]} rounds).

Waiting for data takes this share of a step, and in a loop that indexes by hand that share (`{waited["command"]}`, one thread):
{waits}.
"""


def main() -> None:
    """Put it between the two marks."""
    rewrite(MARKS, text())


if __name__ == "__main__":
    main()
