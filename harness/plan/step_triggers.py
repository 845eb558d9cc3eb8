"""What is due after a step: the end, an evaluation, a checkpoint, the close of a window. Pure."""

from dataclasses import dataclass

from harness.plan.plan import Plan


@dataclass(frozen=True)
class Due:
    """What a step is followed by.

    `over`: the run's last; `limit`: the last that this process was to take; `look`: the ranks check whether any of them was asked
    to stop.
    """

    over: bool = False
    limit: bool = False
    evaluate: bool = False
    save: bool = False
    window: bool = False
    look: bool = False

    @property
    def close(self) -> bool:
        """Whether the window is closed here."""
        return self.over or self.limit or self.evaluate or self.save or self.window


NOTHING, LOOK = Due(), Due(look=True)
STOP_CHECK_S = 2.0
"""Seconds between two checks for a stop on any rank; with longer steps, after each step. A check synchronises with the device, so
that the next step is not enqueued meanwhile."""


def stop_check_steps(steps: int, seconds: float) -> int:
    """After how many steps the ranks look for a stop, from a window of `steps` that took `seconds` on all of them."""
    return max(1, int(STOP_CHECK_S * steps / seconds)) if seconds > 0 else steps


def next_trigger(plan: Plan, position: int) -> int:
    """The stream position from which on something may be due after a step: before it, `due` says NOTHING."""
    ahead = [(position // every + 1) * every for every in (plan.eval_every_samples, plan.checkpoint_every_samples) if every]
    return 0 if plan.rule == "adascale" else min([plan.total_samples, *ahead])


def due(plan: Plan, before: int, after: int, clock: float, *, limit: bool, window: bool) -> Due:
    """What is due after the step over stream positions [before, after), which ends at `clock` samples of the schedule."""
    spent = plan.rule == "adascale" and clock >= plan.schedule.horizon
    return Due(
        over=after >= plan.total_samples or spent,
        limit=limit,
        evaluate=crossed(before, after, plan.eval_every_samples),
        save=crossed(before, after, plan.checkpoint_every_samples),
        window=window,
    )


def crossed(before: int, after: int, every: int | None) -> bool:
    """Whether a multiple of `every` samples lies in (before, after]."""
    return every is not None and after // every > before // every
