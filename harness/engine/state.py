"""Where a run stands. Everything else about a run follows from the run file, the plan and this."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from harness.plan.guard import Guarded
from harness.plan.plateau import Plateau
from harness.stats.events import Metrics
from harness.stats.health import Health
from harness.stats.noise import NoiseScale
from harness.stats.spikes import Spikes


@dataclass(frozen=True)
class State:
    """`samples` is the position in the sample stream, `items` what the loss has counted.

    `scheduled` samples of the schedule have gone by: steps that moved no weight do not count, and AdaScale counts by its gain.
    `growth` times the planned batch is trained at now, at `growth_lr` times the rate, in passes of at most `micro` samples.
    `trained_s` seconds of training led here, `lost_s` more led nowhere; the run `began` at this time (Unix, so that it outlives a
    machine; None where the clock was set back and nobody can tell). The best evaluation so far was at `best_at` samples.
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
    restarts: int = 0
    trained_s: float = 0.0
    lost_s: float = 0.0
    began: float | None = None
    plateau: Plateau = field(default_factory=Plateau)
    noise: NoiseScale = field(default_factory=NoiseScale)
    losses: Spikes = field(default_factory=Spikes)
    norms: Spikes = field(default_factory=Spikes)
    health: Health = field(default_factory=Health)
    guard: Guarded = field(default_factory=Guarded)
    best_at: int = 0
    bad_samples: tuple[int, ...] = ()
    bad_valid: tuple[int, ...] = ()
    best: Metrics = field(default_factory=dict)
    last: Metrics = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json(to_json(s)) == s`."""
        return asdict(self)

    @staticmethod
    def from_json(tree: Mapping[str, Any]) -> "State":
        """The state a checkpoint holds. Raises TypeError or KeyError on another shape."""
        parts = {
            "plateau": Plateau(**tree["plateau"]),
            "noise": NoiseScale.from_json(tree["noise"]),
            "losses": Spikes.from_json(tree["losses"]),
            "norms": Spikes.from_json(tree["norms"]),
            "health": Health.from_json(tree["health"]),
            "guard": Guarded.from_json(tree["guard"]),
            "bad_samples": tuple(tree["bad_samples"]),
            "bad_valid": tuple(tree["bad_valid"]),
        }
        return State(**{**tree, **parts})
