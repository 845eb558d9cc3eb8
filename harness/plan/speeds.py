"""How fast a recipe was measured to train on some worlds, and so how long a plan will take on these and others.

The record is JSON, as `widebatch bench` writes it; further keys, such as the device's name, are left alone:

    {"measured": [{"world_size": 1, "samples_per_s_per_device": 1510.2},
                  {"world_size": 8, "samples_per_s_per_device": 1377.9}]}

Between two worlds that were measured the speed of a device is taken to change evenly with the logarithm of the ranks; past the
largest it is taken to stay, which nobody has seen: the hours are then marked as at best.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.plan.errors import UserError
from harness.plan.plan import Plan

_FORM = 'give a JSON file such as {"measured": [{"world_size": 1, "samples_per_s_per_device": 1510.2}]}, or the folder of a run'


@dataclass(frozen=True)
class Hours:
    """Expected training time of a plan, without evaluations and checkpoints. `at_best`: past the largest world measured."""

    hours: float
    device_hours: float
    at_best: bool


@dataclass(frozen=True)
class Speeds:
    """Samples per second and device, by world size."""

    measured: Mapping[int, float]

    def to_json(self) -> dict[str, Any]:
        """The record."""
        return {"measured": [{"world_size": n, "samples_per_s_per_device": rate} for n, rate in sorted(self.measured.items())]}

    def rate(self, ranks: int) -> tuple[float, bool]:
        """(samples per second and device on `ranks` ranks, whether that is past everything measured)."""
        below = max((n for n in self.measured if n <= ranks), default=None)
        above = min((n for n in self.measured if n >= ranks), default=None)
        if below is None or above is None:
            nearest = below or above
            assert nearest is not None  # noqa: S101  a record holds one world at least
            return self.measured[nearest], below is not None
        low, high = self.measured[below], self.measured[above]
        share = math.log(ranks / below) / math.log(above / below) if above > below else 0.0
        return low + share * (high - low), False

    def hours(self, plan: Plan) -> Hours:
        """How long `plan` will train."""
        rate, at_best = self.rate(plan.processes)
        hours = plan.total_samples / (rate * plan.processes) / 3600
        return Hours(hours, hours * plan.processes, at_best)


def speeds_from(path: Path) -> Speeds:
    """The record in a file, or the median over the windows of a run's folder. Raises UserError."""
    try:
        if path.is_dir():
            return _of_run(path)
        tree = json.loads(path.read_text())
        found = {row["world_size"]: row["samples_per_s_per_device"] for row in tree["measured"]}
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError("--bench", f"{str(path)!r} cannot be read as measured speeds ({type(e).__name__}: {e})", _FORM) from e
    if not found or not all(_count(n) and _positive(rate) for n, rate in found.items()):
        raise UserError("--bench", f"{str(path)!r} holds {found}, which are no speeds", _FORM)
    return Speeds(found)


def _of_run(folder: Path) -> Speeds:
    """Of a run: its ranks, and the median rate of its windows, of which the first tells none."""
    ranks = int(json.loads((folder / "plan.json").read_text())["processes"])
    with (folder / "events.jsonl").open() as lines:
        told = [json.loads(line).get("throughput/samples_per_s_per_device") for line in lines if '"window"' in line]
    rates = [rate for rate in told if _positive(rate)]
    if not rates:
        raise ValueError("no window of the run tells its rate")
    return Speeds({ranks: sorted(rates)[len(rates) // 2]})


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
