"""A run as its journal tells it: curves, events, where the time went, how it ended. Filled in by harness/stats/journal.py."""

import math
from dataclasses import dataclass
from statistics import median
from typing import Any

from harness.stats.thin import Bucket

Losses = list[tuple[int, float]]
"""(samples, mean training loss) of each window."""
TROUBLES = (
    "failed",
    "guard",
    "nonfinite",
    "dead",
    "divergence",
    "damaged_checkpoint",
    "checkpoint_failed",
    "roll_back",
    "back_off",
    "erratic",
    "out_of_memory",
    "data_worker",
    "bad_samples",
)
"""Codes of what went wrong, the most serious first."""
PARTS = {
    "compute": "computing",
    "data": "waiting for data (the slowest rank)",
    "comm": "waiting for other ranks (mean)",
    "lost": "computed, then thrown away by restarts",
    "start": "starting",
    "first_step": "first step, warm-up of the device",
    "eval": "evaluations",
    "checkpoint": "checkpoints",
    "count_flops": "counting operations",
}
"""Where the time of a run goes, and what it is called."""


@dataclass(frozen=True)
class Kind:
    """All events of one code: how many, the samples of the first, the last and a few between, and what the last one said."""

    code: str
    count: int
    first: int
    last: int
    places: tuple[int, ...]
    message: str


@dataclass(frozen=True)
class Story:
    """A run as its journal tells it. `curves` and `evals` go by metric; `seconds` by PARTS, of all processes of the run.

    `reason` is how it ended, None where it has not. `high_noise` holds the noise scales measured in the `high_windows`, those
    at half the highest rate or more: the scale grows as the rate falls, and it is at high rates that a batch must not pass it.
    """

    name: str
    plan: dict[str, Any]
    config: dict[str, Any]
    parameters: float
    device: str
    estimator: str
    step: int
    samples: int
    reason: str | None
    message: str
    starts: int
    curves: dict[str, list[Bucket]]
    kinds: list[Kind]
    losses: Losses
    evals: dict[str, list[tuple[int, float]]]
    best: dict[str, float]
    last: dict[str, float | None]
    seconds: dict[str, float]
    comm_known: bool
    high_noise: list[float]
    high_windows: int

    @property
    def noise_scale(self) -> float | None:
        """The median noise scale at high rates; None where fewer than half of those windows could measure one."""
        return median(self.high_noise) if len(self.high_noise) * 2 > self.high_windows else None

    def planned(self, name: str) -> float | None:
        """A number of the plan; None where the journal has none of that name."""
        found = self.plan.get(name)
        return found if isinstance(found, int | float) and math.isfinite(found) else None

    @property
    def sources(self) -> dict[str, str]:
        """The reason of each number of the plan."""
        return {str(name): str(reason) for name, reason in mapping(self.plan.get("sources")).items()}

    @property
    def warnings(self) -> list[tuple[str, str]]:
        """(code, message) of each warning of the plan."""
        told = self.plan.get("warnings")
        return [(str(w.get("code")), str(w.get("message"))) for w in told if isinstance(w, dict)] if isinstance(told, list) else []

    @property
    def died(self) -> str:
        """Why what this run measured is no evidence: the code of what it died of, or nothing."""
        codes = {k.code for k in self.kinds}
        return next((c for c in ("dead", "divergence") if c in codes), "guard" if self.reason == "guard" else "")


def mapping(value: Any) -> dict[str, Any]:
    """A mapping; an empty one in the place of anything else."""
    return value if isinstance(value, dict) else {}
