"""Where a run stands. Everything else about a run follows from the run file, the plan and this."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from harness.plan.plateau import Plateau


@dataclass(frozen=True)
class State:
    """`samples` is the position in the sample stream, `items` what the loss has counted.

    `skipped_samples` of the samples did not move the weights, nor the schedule.
    """

    step: int = 0
    samples: int = 0
    items: float = 0.0
    skipped_steps: int = 0
    skipped_samples: int = 0
    plateau: Plateau = field(default_factory=Plateau)
    best: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json(to_json(s)) == s`."""
        return asdict(self)

    @staticmethod
    def from_json(tree: Mapping[str, Any]) -> "State":
        """The state a checkpoint holds. Raises TypeError or KeyError on another shape."""
        return State(**{**tree, "plateau": Plateau(**tree["plateau"])})
