"""The learning rate of the next step, and how far the step advances the schedule. Constant between two readings of the ranks."""

import math
from dataclasses import dataclass

from harness.checkpoint.train_state import State
from harness.plan.lr_backoff import LrBackoff
from harness.plan.optimizers import optimizer_facts
from harness.plan.plan import Plan


@dataclass(frozen=True)
class StepRecord:
    """One step as it was taken: where it begins in the stream, its samples, its rate, and the samples of the schedule that it
    moves on by if the weights move."""

    start: int
    samples: int
    lr: float
    advance: float


@dataclass(frozen=True)
class StepRate:
    """`factor` on the schedule's rate, `brake` on it too; `gain` is AdaScale's, and None for all other rules."""

    plan: Plan
    factor: float
    brake: LrBackoff
    gain: float | None

    def step(self, position: int, clock: float, samples: int) -> StepRecord:
        """The step that begins at `position` of the stream and `clock` of the schedule (both in samples)."""
        lr = self.plan.lr_at(clock) * self.factor * self.brake.at(position)
        if self.gain is None:
            return StepRecord(position, samples, lr, samples)
        adam = optimizer_facts(self.plan.optimizer).family == "adam"
        lr *= math.sqrt(self.gain) if adam else self.gain
        return StepRecord(position, samples, lr, samples / self.plan.ratio * self.gain)


def pace(plan: Plan, state: State) -> StepRate:
    """The StepRate from `state` on.

    AdaScale (Johnson et al. 2020, 2007.05105, algorithm 2): the rate is r times that of the reference schedule, and a step counts
    for r reference steps; with Adam the rate takes sqrt(r) (Qiao et al. 2021, 2008.12260). r is 1 until it is measured.
    """
    gain = None
    if plan.rule == "adascale":
        gain = state.noise.gain(plan.reference_batch, plan.ratio) or 1.0
    return StepRate(plan, state.plateau.factor * state.growth_lr, state.guard.brake, gain)
