"""What the guard does about a trouble: the run file's policy, how much of it is left, and what it has done so far. Pure."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from harness.config.errors import UserError
from harness.config.schema import GuardConfig
from harness.plan.lr_backoff import LrBackoff
from harness.plan.lr_schedule import Schedule

Trouble = Literal["nonfinite", "spike", "divergence", "dead", "erratic"]
Action = Literal["note", "skip", "clip", "back_off", "warm_up", "roll_back", "stop"]
STRENGTH: tuple[Action, ...] = get_args(Action)
"""The actions, weakest first: of two troubles at once, the stronger action counts."""
LIMITS: tuple[Action, ...] = ("skip", "clip")
"""Actions inside the step, before the weights move; nothing is left to do after it."""
PRESETS: dict[str, dict[Trouble, Action]] = {
    "watch": {"nonfinite": "skip", "spike": "note", "divergence": "note", "dead": "note", "erratic": "note"},
    "protect": {"nonfinite": "skip", "spike": "clip", "divergence": "roll_back", "dead": "roll_back", "erratic": "back_off"},
}
Gap = tuple[int, int]
"""Positions [start, stop) of the sample stream that are left out."""


@dataclass(frozen=True)
class GuardState:
    """What the guard has done in a run: kept in the checkpoint, and through a roll-back.

    `suspect` is the window in which the trouble began that the run has not recovered from. `returned` is how many samples the
    checkpoint had seen that was gone back to last, `in_vain` how many roll-backs just before led to no newer good checkpoint.
    """

    brake: LrBackoff = field(default_factory=LrBackoff)
    interventions: int = 0
    rollbacks: int = 0
    gaps: tuple[Gap, ...] = ()
    suspect: Gap | None = None
    returned: int | None = None
    in_vain: int = 0

    def past(self, position: int) -> int:
        """The first position from `position` on that is in no gap."""
        for start, stop in self.gaps:
            if start <= position < stop:
                position = stop
        return position

    def next_gap(self, position: int, end: int) -> int:
        """Where the next gap after `position` begins, or `end`."""
        return min((start for start, _ in self.gaps if start >= position), default=end)

    def seen(self, troubles: Collection[Trouble], window: Gap, *, well: bool, fell: bool) -> "GuardState":
        """The state after a window: the first one with trouble, or after which the run was not well (`fell`), is the suspect until
        it is well."""
        if fell or any(t in ("nonfinite", "spike", "erratic") for t in troubles):
            return self if self.suspect else replace(self, suspect=window)
        return replace(self, suspect=None) if well and self.suspect else self


def policy(guard: GuardConfig) -> dict[Trouble, Action]:
    """The answer to each trouble: the preset's, or the run file's own."""
    own: dict[Trouble, Action | None] = {
        "nonfinite": guard.nonfinite,
        "spike": guard.spike,
        "divergence": guard.divergence,
        "dead": guard.dead,
        "erratic": guard.erratic,
    }
    return {trouble: own[trouble] or action for trouble, action in PRESETS[guard.policy].items()}


def answer(guard: GuardConfig, troubles: Collection[Trouble]) -> tuple[Action, Trouble] | None:
    """The strongest action that is still due for a window's troubles, and the trouble it answers; None if none is due."""
    given = policy(guard)
    ranked = sorted(((STRENGTH.index(given[t]), t) for t in troubles if given[t] not in ("note", *LIMITS)), reverse=True)
    return (STRENGTH[ranked[0][0]], ranked[0][1]) if ranked else None


def check_guard(guard: GuardConfig, schedule: Schedule, backend: str) -> None:
    """Raises UserError for a policy that cannot be carried out."""
    if guard.divergence == "warm_up" and not schedule.warmup:
        raise UserError(
            "guard.divergence", "is warm_up, but the plan has no warm-up to grow", "set scaling.warmup_epochs, or back_off"
        )
    if guard.spike == "skip" and backend in ("zero1", "zero2", "zero3"):
        at = f"is skip, but {backend} gives the gradient's norm only after the step"
        raise UserError("guard.spike", at, "use clip, or backend.name: ddp or fsdp")
