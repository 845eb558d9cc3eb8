"""Measured speeds, read from the record that `widebatch bench` writes or from the folder of a run."""

import json
import math
from pathlib import Path
from statistics import median_high

from harness.analysis.journal_lines import finite
from harness.analysis.journal_tail import windows
from harness.config.errors import UserError
from harness.config.plain_file import read_plain
from harness.config.run_folder import PLAN, RunFolder
from harness.plan.time_estimate import Speeds

MOST = 16 << 20
"""The largest record or plan that is read, in bytes."""
_FORM = 'give a JSON file such as {"measured": [{"world_size": 1, "samples_per_s_per_device": 1510.2}]}, or the folder of a run'


def speeds_from(path: Path) -> Speeds:
    """The record in a file, or the median over the windows of a run's folder. Raises UserError."""
    try:
        if path.is_dir():
            return _of_run(path)
        tree = json.loads(read_plain(path, MOST))
        found = {row["world_size"]: row["samples_per_s_per_device"] for row in tree["measured"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise UserError("--bench", f"{str(path)!r} cannot be read as measured speeds ({type(e).__name__}: {e})", _FORM) from e
    if not found or not all(_count(n) and _positive(rate) for n, rate in found.items()):
        raise UserError("--bench", f"{str(path)!r} holds {found}, which are not speeds", _FORM)
    return Speeds(found)


def _of_run(folder: Path) -> Speeds:
    """The speed of a run: its ranks, and the median rate of its windows (the first has no rate)."""
    ranks = json.loads(read_plain(RunFolder(folder).plan, MOST))["processes"]
    if not _count(ranks):
        raise ValueError(f"{PLAN} has {ranks!r} processes")
    found = [finite(line.get("throughput/samples_per_s_per_device")) for line in windows(RunFolder(folder).journal)]
    rates = [rate for rate in found if rate > 0]
    if not rates:
        raise ValueError("no window of the run has a rate")
    return Speeds({ranks: median_high(rates)})


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
