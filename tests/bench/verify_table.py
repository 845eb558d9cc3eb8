"""What `widebatch verify -- COMMAND` says of each planted bug in each style of script, and of the clean scripts.

`python -m tests.bench.verify_table` runs all of them, writes configs/results/verify.json, and puts the table in the READMEs.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.analysis.equivalence import Finding
from tests.bench.peers.__main__ import machine
from tests.support.planted_scripts import BUGS, CLEAN, differing, found_in
from tests.support.processes import ROOT
from tests.support.readmes import rewrite

OUT = ROOT / "configs" / "results" / "verify.json"
MARKS = ("<!-- verify -->", "<!-- end of verify -->")
PLANTED = {
    "own weights": "weights seeded by rank",
    "unsynced": "gradients that nobody reduces",
    "summed": "gradients summed over ranks",
    "undivided": "loss not divided by the passes",
    "twice": "loss divided by them twice",
    "by ranks": "loss divided by the ranks too",
    "unequal": "means of unequal counts",
    "own rate": "a rate of each rank's own",
    "same samples": "no sampler: all ranks read the same",
    "own shuffle": "a shuffle of each rank's own",
    "own buffers": "running statistics not synchronised",
    "same dropout": "dropout seeded alike",
}
"""Each bug in words."""


def outcome(bug: str, found: Sequence[Finding]) -> str:
    """Either "named", "found" (something else is said to differ) or "missed"."""
    what, words = BUGS[bug]
    told = differing(found)
    return "named" if words in told.get(what, "") else "found" if told else "missed"


def record_of(found: dict[str, dict[str, list[Finding]]]) -> dict[str, Any]:
    """The record of what was found, by style and variant."""
    bugs = {bug: {style: outcome(bug, seen[bug]) for style, seen in found.items()} for bug in BUGS}
    clean = {style: {name: sorted(differing(seen[name])) for name in CLEAN[style]} for style, seen in found.items()}
    return {"command": "python -m tests.bench.verify_table", "machine": machine(), "bugs": bugs, "clean": clean}


def table(record: dict[str, Any]) -> str:
    """The READMEs' table of a record."""
    styles = list(record["clean"])
    lines = [f"| planted | looked at | {' | '.join(styles)} |", f"|---|---|{'---|' * len(styles)}"]
    lines += [
        f"| {PLANTED[bug]} | `{BUGS[bug][0]}` | {' | '.join(cells[style] for style in styles)} |"
        for bug, cells in record["bugs"].items()
    ]
    passed = [f"{sum(not told for told in names.values())} of {len(names)} pass" for names in record["clean"].values()]
    return "\n".join([*lines, f"| nothing: clean scripts | all | {' | '.join(passed)} |"]) + "\n"


def main() -> None:
    """Run all, and write the record and its table."""
    with tempfile.TemporaryDirectory() as folder:
        record = record_of({style: found_in(style, _made(Path(folder) / style)) for style in CLEAN})
    OUT.write_text(json.dumps(record, indent=1) + "\n")
    rewrite(MARKS, table(record))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    main()
