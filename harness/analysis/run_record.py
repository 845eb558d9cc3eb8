"""The record of a run, from its journal: curves, events, where the time went, how it ended. journal_reader.py fills it in."""

import math
import shlex
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median
from typing import Any

from harness.analysis.downsample import Bucket

SHOWN_HOSTS = 4
Losses = list[tuple[int, float]]
"""(samples, mean training loss) of each window."""
OF_A_STEP = ("spike", "nonfinite", "spared")
"""Codes of what one step's samples may have caused: `widebatch samples` lists them."""
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
    "rank_lost",
    "data_worker",
    "bad_samples",
)
"""Codes of what went wrong, the most serious first."""
PARTS = {
    "compute": "computing",
    "data": "waiting for data (the slowest rank)",
    "comm": "waiting for other ranks (mean)",
    "lost": "computed, then lost to restarts",
    "rolled_back": "computed, then rolled back by the guard",
    "start": "starting",
    "first_step": "first step, warm-up of the device",
    "eval": "evaluations",
    "checkpoint": "checkpoints",
    "count_flops": "counting operations",
    "source_losses": "losses of a mixture's sources",
    "recovery": "ranks lost, until the others could train again",
}
"""Where the time of a run goes, and what it is called."""


@dataclass(frozen=True)
class Kind:
    """All events of one code: how many, the samples of the first and the last, and what the last one said.

    `places`: (samples, step) of the first, the last and a few between.
    """

    code: str
    count: int
    first: int
    last: int
    places: tuple[tuple[int, int], ...]
    message: str


@dataclass(frozen=True)
class RunRecord:
    """The record of a run. `curves` and `evals` are by metric; `seconds` by PARTS, of all processes of the run.

    The guard rolled back what is `discarded`, from samples to samples. `reason` is how it ended, None if it has not. `knots` are
    (samples, step, seconds that its processes ran, from the first one's start) of windows, by which a curve is drawn over any of
    the three. `folder` is how a command line names the run.
    `high_noise` holds the noise scales measured in the `high_windows`, those at half the highest rate or more: the scale grows as
    the rate falls, and it is at high rates that a batch must not pass it.
    """

    name: str
    folder: str
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
    discarded: list[tuple[int, int]]
    knots: list[tuple[int, int, float]]
    began: float | None
    environment: dict[str, Any]

    @property
    def where(self) -> list[tuple[str, str]]:
        """When the run began, on what and with which software, as far as its journal says: (label, text) pairs."""
        found, hosts = self.environment, self.environment.get("hosts")
        named = [str(host) for host in hosts] if isinstance(hosts, list) else []
        packages = [f"{name} {found[name]}" for name in ("widebatch", "torch", "python") if found.get(name)]
        told = {
            "begun": "" if self.began is None else f"{datetime.fromtimestamp(self.began, UTC):%Y-%m-%d %H:%M UTC}",
            "device": str(found.get("device") or self.device),
            "host": ", ".join(named[:SHOWN_HOSTS] + ["..."] * (len(named) > SHOWN_HOSTS)),
            "software": ", ".join(packages),
        }
        return [(what, text) for what, text in told.items() if text]

    def batch_of(self, step: int) -> str:
        """The command that lists the samples of a step."""
        return f"widebatch samples {shlex.quote(self.folder)} --step {step}"

    @property
    def noise_scale(self) -> float | None:
        """The median noise scale at high rates; None if fewer than half of those windows could measure one."""
        return median(self.high_noise) if len(self.high_noise) * 2 > self.high_windows else None

    def planned(self, name: str) -> float | None:
        """A number of the plan; None if the journal has none of that name."""
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
    def saved(self) -> bool:
        """Whether the guard stepped in and the run came to its end all the same."""
        acted = any(k.code in ("roll_back", "back_off", "warm_up") for k in self.kinds)
        return acted and self.reason in ("complete", "early_stop") and not self.last.get("stability/dead")

    @property
    def lr_factor(self) -> float:
        """What guard and plateau multiply the schedule's rate by at the end."""
        found = self.last.get("stability/lr_factor")
        return found if found is not None and math.isfinite(found) else 1.0

    @property
    def died(self) -> str:
        """The code of the notice of which the run died, so that its measurements are not used; empty if it did not die."""
        codes = {k.code for k in self.kinds}
        return next((c for c in ("dead", "divergence") if c in codes), "guard" if self.reason == "guard" else "")


def best_by(config: dict[str, Any]) -> str:
    """The metric by which the run file judges evaluations (eval.metric)."""
    return str(mapping(config.get("eval")).get("metric", "eval/loss"))


def mapping(value: Any) -> dict[str, Any]:
    """`value` if it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}
