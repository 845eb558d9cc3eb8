"""The state of a run beside weights and optimizer. Everything else about a run follows from the run file, the plan and this."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import msgspec

from harness.plan.guard_policy import GuardState
from harness.plan.plateau import Plateau
from harness.telemetry.events import Metrics
from harness.telemetry.health import Health
from harness.telemetry.noise_scale import NoiseScale
from harness.telemetry.spikes import Spikes


@dataclass(frozen=True)
class State:
    """`samples` is the position in the sample stream, `items` what the loss has counted.

    `scheduled` samples of the schedule have gone by: steps that moved no weight do not count, and AdaScale counts by its gain.
    `empty_steps` of them counted nothing on any rank: the schedule continues, as their samples were seen.
    `growth` times the planned batch is trained at now, at `growth_lr` times the rate, in passes of at most `micro` samples.
    `trained_s` seconds of training led here, `lost_s` more led nowhere, of which the guard rolled back `rolled_back_s`; so did the
    training on `discarded_samples`. The run `began` at this time (Unix, so that it outlives a
    machine; None if the clock was set back and nobody can tell). The best evaluation so far is `best`; the one that the patience
    counts from was at `best_at` samples, eval.metric then `best_then` (None: as in `best`).
    `noise` was measured by the estimator `noise_by`, which is unknown in checkpoints of earlier versions.
    `lineage` is drawn when a run starts from nothing and stays with its checkpoints: by it a run knows the saves it may delete.
    `evaluation_due`: an evaluation of this state has yet to be made.
    `bad_samples` are the ids of training samples that cannot be read, `bad_valid` those of the validation split.
    """

    step: int = 0
    samples: int = 0
    items: float = 0.0
    scheduled: float = 0.0
    growth: int = 1
    growth_lr: float = 1.0
    micro: int | None = None
    skipped_steps: int = 0
    nonfinite_steps: int = 0
    empty_steps: int = 0
    restarts: int = 0
    recoveries: int = 0
    trained_s: float = 0.0
    lost_s: float = 0.0
    rolled_back_s: float = 0.0
    discarded_samples: int = 0
    began: float | None = None
    plateau: Plateau = field(default_factory=Plateau)
    noise: NoiseScale = field(default_factory=NoiseScale)
    noise_by: str = ""
    losses: Spikes = field(default_factory=Spikes)
    norms: Spikes = field(default_factory=Spikes)
    health: Health = field(default_factory=Health)
    guard: GuardState = field(default_factory=GuardState)
    evaluation_due: bool = False
    best_at: int = 0
    best_then: float | None = None
    bad_samples: tuple[int, ...] = ()
    bad_valid: tuple[int, ...] = ()
    lineage: str = ""
    best: Metrics = field(default_factory=dict)
    last: Metrics = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json(to_json(s)) == s`."""
        return asdict(self)

    @staticmethod
    def from_json(tree: Mapping[str, Any]) -> "State":
        """The state a checkpoint holds; fields that it lacks have their defaults. Raises ValueError on values of another type."""
        return msgspec.convert(tree, State)
