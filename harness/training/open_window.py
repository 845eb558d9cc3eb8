"""The window of steps that is open: how far it is, and how the run proceeds when it closes."""

from dataclasses import dataclass, field
from enum import Enum, auto

from harness.data.feed import Micro
from harness.data.sample_order import StepShards
from harness.engine.interface import Limit
from harness.plan.step_triggers import Due
from harness.training.step_rate import StepRate, StepRecord


@dataclass(frozen=True)
class Passes:
    """The next step of a script that owns its loop: the script runs these passes, and the loop then ends the step."""

    shards: StepShards
    micros: list[Micro]


class Outcome(Enum):
    """How a run continues after a window."""

    CONTINUES = auto()
    ROLLED_BACK = auto()
    BATCH_CHANGED = auto()
    ENDED = auto()


@dataclass
class Window:
    """The current window: its steps' settings, and its progress. Positions are in samples, of the stream and of the schedule."""

    rate: StepRate
    limit: Limit | None
    position: int
    schedule_position: float
    trigger: int
    taken: list[StepRecord] = field(default_factory=list)
    waited_s: float = 0.0
    due: Due | None = None
    """What follows it, once its last step is taken."""

    def take(self, step: StepRecord, after: int) -> None:
        """A step was taken, and ended at `after` in the stream."""
        self.taken.append(step)
        self.position, self.schedule_position = after, self.schedule_position + step.advance
