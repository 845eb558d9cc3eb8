"""Where a run stands. Everything else about a run follows from the run file, the plan and this."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from harness.plan.plateau import Plateau
from harness.stats.events import Metrics
from harness.stats.noise import NoiseScale
from harness.stats.spikes import Spikes


@dataclass(frozen=True)
class State:
    """`samples` is the position in the sample stream, `items` what the loss has counted.

    `skipped_samples` of the samples did not move the weights, nor the schedule. `trained_s` seconds of training led here, `lost_s`
    more led nowhere; the run `began` at this time (Unix, so that it outlives a machine).
    """

    step: int = 0
    samples: int = 0
    items: float = 0.0
    skipped_steps: int = 0
    skipped_samples: int = 0
    nonfinite_steps: int = 0
    restarts: int = 0
    trained_s: float = 0.0
    lost_s: float = 0.0
    began: float = 0.0
    plateau: Plateau = field(default_factory=Plateau)
    noise: NoiseScale = field(default_factory=NoiseScale)
    losses: Spikes = field(default_factory=Spikes)
    norms: Spikes = field(default_factory=Spikes)
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
        }
        return State(**{**tree, **parts})
