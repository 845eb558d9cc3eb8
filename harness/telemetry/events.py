"""What a run reports: frozen events, in order. Watchers receive them; they cannot steer.

Lengths are in samples and optimizer steps, times in seconds of a monotonic clock. A metric's name has one slash and its unit as
suffix.
"""

from dataclasses import dataclass, field
from typing import Any

from harness.plan.plan import Plan
from harness.telemetry.histograms import Histogram

Metrics = dict[str, float | None]
"""Metrics by name. None: cannot be known; a number that is not finite was measured as such."""


@dataclass(frozen=True)
class Started:
    """The run begins, or continues at `samples`. `config` is the resolved run file as plain data.

    Of `parameters` so many are `trained`. `estimator`: how the gradient noise scale is measured, by passes, ranks, moments or none.
    The run first `began` at that time, by this machine's clock (Unix); None if it cannot be known. `environment`: with what it
    runs, and where (environment.py). `dataset`: training samples.
    """

    plan: Plan
    config: dict[str, Any]
    folder: str
    step: int
    samples: int
    parameters: int
    device: str
    estimator: str = "none"
    began: float | None = None
    trained: int | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    dataset: int | None = None


@dataclass(frozen=True)
class Stepped:
    """One optimizer step is done. Sent at the end of a window, for each step of it. `samples` counts those seen after it."""

    step: int
    samples: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Windowed:
    """A logging window is done: sums over its steps and over all ranks, and rates over its training time."""

    step: int
    samples: int
    metrics: Metrics


@dataclass(frozen=True)
class Histograms:
    """Before the window's event: histograms of its last step, by `weights/NAME` and `gradients/NAME`. Not in the journal."""

    step: int
    samples: int
    histograms: dict[str, Histogram]


@dataclass(frozen=True)
class Evaluated:
    """The validation split was measured, each sample once. `best`: the lowest loss so far."""

    step: int
    samples: int
    metrics: Metrics
    best: bool


@dataclass(frozen=True)
class Shown:
    """Examples of the validation split as the recipe shows them: rows of plain values and images (float [c, h, w] in 0..1)."""

    step: int
    samples: int
    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class Saved:
    """The checkpoint of an earlier step is written, checked and committed.

    `seconds` is how long it held training up, `write_s` how long its writing took beside training.
    """

    step: int
    samples: int
    path: str
    seconds: float
    bytes: int
    write_s: float


@dataclass(frozen=True)
class Noticed:
    """Something a person should know: a warning of the plan, a skipped step, a checkpoint that was damaged."""

    step: int
    samples: int
    code: str
    message: str


@dataclass(frozen=True)
class RanksLost(Noticed):
    """Ranks were killed, and the others, `world_size` of them, continue without a restart.

    `lost`: their numbers among the ranks that the run was started with. `seconds`: from when the others noticed to when they could
    train again.
    """

    lost: tuple[int, ...]
    world_size: int
    seconds: float


@dataclass(frozen=True)
class Ended:
    """The run is over. `reason`: complete, stop_after_steps, stop_requested, guard or failed."""

    step: int
    samples: int
    reason: str
    message: str
    metrics: Metrics = field(default_factory=dict)


Event = Started | Stepped | Histograms | Windowed | Evaluated | Shown | Saved | Noticed | Ended

NAMES: dict[type[Event], str] = {
    Started: "start",
    Stepped: "step",
    Histograms: "histograms",
    Windowed: "window",
    Evaluated: "eval",
    Shown: "examples",
    Saved: "checkpoint",
    Noticed: "notice",
    RanksLost: "notice",
    Ended: "end",
}
