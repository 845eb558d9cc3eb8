"""How fast a recipe was measured to train on some worlds, and so how long a plan will take on these and others.

The record is JSON, as `widebatch bench` writes it; further keys, such as the device's name, are left alone:

    {"measured": [{"world_size": 1, "samples_per_s_per_device": 1510.2},
                  {"world_size": 8, "samples_per_s_per_device": 1377.9}]}

Between two worlds that were measured the speed of a device is taken to change evenly with the logarithm of the ranks; past the
largest it is assumed to stay, which is optimistic: the hours are then marked as at best.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.plan.plan import Plan


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
