"""The batch over a run that changes it on purpose: stages of the schedule, each with its global batch and its factor on the rate.

decay: where the schedule lowers the rate by f, the batch grows by f instead (Smith et al. 2018, 1711.00489). seesaw: the rate falls
by sqrt(f), and the batch grows by f (2510.14717). Smooth shapes are cut where they have halved. ramp: equal increments over equal
lengths (Brown et al. 2020, 2005.14165; Megatron-LM's rampup-batch-size). All stay below batch.most. batch.steps: as given (as
Megatron-LM's step-batch-size-schedule); where the rate follows the rule, twice the batch at sqrt(2) lr is what Merrill et al. 2025
(2505.23971) grew OLMo by.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from harness.config.errors import UserError
from harness.config.schema import BatchConfig
from harness.plan.batch import nearest_multiples
from harness.plan.lr_schedule import Schedule
from harness.plan.token_units import marked

_SMOOTH = ("linear", "cosine", "exponential", "inverse_sqrt", "wsd")


@dataclass(frozen=True)
class Stage:
    """From `start` (samples of the schedule) on: samples per optimizer step, and a factor on the schedule's rate."""

    start: int
    batch: int
    lr: float = 1.0


@dataclass(frozen=True)
class Sizes:
    """The plan's global batch, its ranks, the tokens of a sample, and the rule's factor on lr at a global batch."""

    planned: int
    world: int
    tokens: int | None
    lr: Callable[[int], float]


def stages(batch: BatchConfig, schedule: Schedule, sizes: Sizes, *, on_plateau: bool = False) -> tuple[Stage, ...]:
    """The stages of a run. `on_plateau`: a plateau grows the batch too. Raises UserError."""
    planned = sizes.planned
    _check_settings(batch, planned)
    if on_plateau and batch.most is None:
        at = "missing, and schedule.on_plateau: grow_batch needs it"
        raise UserError("batch.most", at, "give the largest global batch")
    if batch.steps:
        found = list(_given(batch, schedule, sizes))
        return tuple(found if batch.stage_lr == "keep" else _by_rule(found, sizes))
    if batch.grow == "ramp":
        found = list(_ramp(batch, planned, sizes.world))
        return tuple(_by_rule(found, sizes) if batch.stage_lr == "rule" else found)
    if batch.grow in ("decay", "seesaw"):
        return tuple(_instead_of_decay(batch, schedule, planned))
    return (Stage(0, planned),)


def stage_reason(batch: BatchConfig) -> str:
    """What lr does as the batch changes."""
    if batch.steps or batch.grow == "ramp":
        kept = batch.stage_lr == "keep" or (batch.stage_lr is None and not batch.steps)
        if kept:
            return "lr is kept and does not follow the rule (batch.stage_lr: rule changes that)"
        return "lr follows the batch by the rule (batch.stage_lr: keep changes that)"
    return f"batch.grow: {batch.grow}"


def _by_rule(found: Sequence[Stage], sizes: Sizes) -> Iterator[Stage]:
    """The stages with lr by the rule at each batch, as factors of the plan's own."""
    for stage in found:
        yield Stage(stage.start, stage.batch, sizes.lr(stage.batch) / sizes.lr(sizes.planned))


def _given(batch: BatchConfig, schedule: Schedule, sizes: Sizes) -> Iterator[Stage]:
    """The stages of batch.steps. Raises UserError."""
    last = -1
    for number, (position, size) in enumerate(batch.steps):
        start, samples = (marked("batch.steps", value, sizes.tokens) for value in (position, size))
        if (number == 0) != (start == 0) or start <= last:
            raise UserError("batch.steps", f"has a step at {position}", "begin with 0, and give later ones in order")
        if start >= schedule.horizon:
            raise UserError("batch.steps", f"has a step at {position}, past the schedule's end", "leave it out, or train longer")
        if samples < 1 or samples % sizes.world:
            near = nearest_multiples(samples, sizes.world)
            raise UserError("batch.steps", f"{samples} samples do not split over {sizes.world} GPUs", f"nearest: {near}")
        last = start
        yield Stage(start, samples)


def stage_at(found: Sequence[Stage], samples: float) -> Stage:
    """The stage that holds at `samples` of the schedule."""
    if len(found) == 1:  # of nearly all runs, and asked twice a step
        return found[0]
    return found[max(bisect_right(found, samples, key=lambda s: s.start) - 1, 0)]


def walk(found: Sequence[Stage], end: int) -> Iterator[tuple[Stage, int, int]]:
    """(stage, its first sample, its steps) to `end` samples, where a step that begins before a stage's end is the stage's."""
    position = 0
    for number, stage in enumerate(found):
        stop = min(found[number + 1].start if number + 1 < len(found) else end, end)
        steps = max(-(-(stop - position) // stage.batch), 0)
        yield stage, position, steps
        position += steps * stage.batch


def _ramp(batch: BatchConfig, planned: int, world: int) -> Iterator[Stage]:
    start, increment, length = batch.ramp_start, batch.ramp_increment, batch.ramp_samples
    assert start is not None  # noqa: S101  checked before
    assert increment is not None  # noqa: S101
    assert length is not None  # noqa: S101
    for name, value in (("ramp_start", start), ("ramp_increment", increment)):
        if value % world:
            at = f"{value} does not split over {world} GPUs"
            raise UserError(f"batch.{name}", at, f"give a multiple of {world}")
    count, rest = divmod(planned - start, increment)
    if rest or count < 1:
        at = f"{increment} does not lead from {start} to the global batch {planned} in whole increments"
        raise UserError("batch.ramp_increment", at, f"give a divisor of {planned - start}" if planned > start else "start lower")
    for number in range(count + 1):
        yield Stage(round(length * number / count), start + increment * number)


def _instead_of_decay(batch: BatchConfig, schedule: Schedule, planned: int) -> Iterator[Stage]:
    assert batch.most is not None  # noqa: S101  checked before
    yield Stage(0, planned)
    grown, kept = 1, 1.0
    for start, divisor in _drops(schedule):
        growth = min(divisor, batch.most // (planned * grown))
        if growth < 2:
            return
        grown *= growth
        kept *= growth if batch.grow == "decay" else math.sqrt(growth)
        yield Stage(start, planned * grown, kept)


def _drops(schedule: Schedule) -> Iterator[tuple[int, int]]:
    """(sample, divisor of the rate) of each fall of the schedule after its warm-up."""
    if schedule.shape == "step":
        divisor = round(1 / schedule.gamma)
        if abs(1 / schedule.gamma - divisor) > 1e-6:
            raise UserError(
                "schedule.gamma", f"is {schedule.gamma:g}, and a batch grows by whole factors", "give 1/n: 0.5, 0.2, 0.1"
            )
        yield from ((m, divisor) for m in schedule.milestones)
        return
    if schedule.shape not in _SMOOTH:
        raise UserError("batch.grow", f"shape {schedule.shape} never lowers the rate", "use grow: noise or ramp, or another shape")
    level, end = 0.5, schedule.horizon
    while schedule.factor(end - 1) <= level:
        yield bisect_right(range(schedule.warmup, end), -level, key=lambda s: -schedule.factor(s)) + schedule.warmup, 2
        level /= 2


def _check_settings(batch: BatchConfig, planned: int) -> None:
    """Raises UserError for settings that are missing, or that nothing would use."""
    if batch.steps and batch.grow != "none":
        raise UserError("batch.grow", f"is {batch.grow}, and batch.steps are given", "leave one of them out")
    if batch.stage_lr is not None and not batch.steps and batch.grow != "ramp":
        raise UserError("batch.stage_lr", f"is {batch.stage_lr}, which only batch.steps and grow: ramp use", "leave it out")
    ramp = {"ramp_start": batch.ramp_start, "ramp_increment": batch.ramp_increment, "ramp_samples": batch.ramp_samples}
    for name, value in ramp.items():
        if batch.grow == "ramp" and value is None:
            raise UserError(f"batch.{name}", "missing, and grow: ramp needs it", "give it in samples")
        if batch.grow != "ramp" and value is not None:
            raise UserError(f"batch.{name}", f"is {value}, but batch.grow is {batch.grow}", "set batch.grow: ramp, or leave it out")
    if batch.grow in ("decay", "seesaw", "noise") and batch.most is None:
        raise UserError("batch.most", f"missing, and grow: {batch.grow} needs it", "give the largest global batch")
    if batch.most is not None and batch.most < planned:
        raise UserError("batch.most", f"{batch.most} is less than the global batch {planned}", "give at least as much")
