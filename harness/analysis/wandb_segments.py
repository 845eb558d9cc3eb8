"""The segments of a run in W&B, one for each start of it.

W&B keeps a run's points by their `_step`, which must rise over all segments: points of one that begins at 0 again take the place of
earlier ones when it is synced. A segment in which nothing was written yet stops the `wandb sync` of all others.

No import of wandb: the launcher uses this, too.
"""

import shutil
from collections import Counter
from pathlib import Path

from harness.analysis.journal_lines import read
from harness.config.run_folder import RunFolder

_POINTS = ("window", "eval", "examples", "checkpoint")
"""The events of a journal that become a point in W&B."""
_HEADER = 7
"""Bytes with which a .wandb file begins, before its first record."""


def points_so_far(journal: Path) -> int:
    """The first free `_step`: the most points that earlier starts of the run can have logged, by its journal."""
    if not journal.is_file():
        return 0
    told = Counter(line["event"] for line in read(journal, steps=False))
    return sum(told[event] for event in _POINTS)


def drop_empty(folder: Path) -> None:
    """Remove the segments in a run folder that were killed before anything was written in them. None of them may be in use."""
    kept = RunFolder(folder).wandb
    for log in kept.glob("*run-*/run-*.wandb"):
        if not any(path.is_symlink() for path in (kept, log.parent, log)) and log.stat().st_size <= _HEADER:
            shutil.rmtree(log.parent, ignore_errors=True)
