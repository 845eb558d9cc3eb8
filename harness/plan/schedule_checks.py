"""Which settings a schedule's shape uses, and which lengths do not fit together: what nothing would use is refused, not ignored."""

from math import floor

from harness.config.errors import UserError
from harness.config.schema import ScheduleConfig
from harness.plan.lr_schedule import Schedule, Shape

USES: dict[Shape, tuple[str, ...]] = {
    "constant": (),
    "linear": ("final_fraction",),
    "cosine": ("final_fraction",),
    "step": ("milestones", "gamma"),
    "exponential": ("gamma", "every"),
    "plateau": ("gamma", "every", "threshold", "final_fraction", "on_plateau"),
    "inverse_sqrt": (),
    "wsd": ("decay_fraction", "final_fraction"),
}
"""The settings of section schedule that a shape uses besides its length."""
_NEEDED: dict[str, tuple[tuple[Shape, ...], str]] = {
    "milestones": (("step",), "give a list such as [30, 60, 80]"),
    "every": (("exponential", "plateau"), "give a length in the schedule's unit"),
}


def check_settings(s: ScheduleConfig) -> None:
    """Raise UserError for a setting that the shape needs and lacks, or one that is set and that the shape does not use.

    A setting at its default is not set: the run file that a run leaves holds all of them.
    """
    for name, (shapes, remedy) in _NEEDED.items():
        if s.shape in shapes and not getattr(s, name):
            raise UserError(f"schedule.{name}", f"missing, and shape {s.shape} needs it", remedy)
    plain = ScheduleConfig()
    for name in dict.fromkeys(name for names in USES.values() for name in names):
        value = getattr(s, name)
        if name not in USES[s.shape] and value not in (None, (), getattr(plain, name)):
            shown = list(value) if isinstance(value, tuple) else value
            users = " or ".join(shape for shape, names in USES.items() if name in names)
            at = f"is {shown}, but shape {s.shape} does not use it"
            raise UserError(f"schedule.{name}", at, f"leave it out, or set schedule.shape: {users}")


def check_lengths(s: Schedule) -> None:
    """Raise UserError where the rate would jump at the end of the warm-up: lengths, all in samples, that overlap."""
    if s.milestones and s.milestones[0] < max(s.warmup, 1):
        first = s.milestones[0]
        at = f"the drop at {first} samples is inside the warm-up of {s.warmup}"
        raise UserError("schedule.milestones", at, f"{f'set scaling.warmup_samples: {first}, or ' * (first > 0)}give a later one")
    if s.shape == "wsd" and _stable(s) < s.warmup:
        most = floor(1e4 * (1 - s.warmup / s.horizon)) / 1e4
        at = f"{s.decay_fraction:g}: the decay begins at {_stable(s):.0f} samples, inside the warm-up of {s.warmup}"
        shorter = f"scaling.warmup_samples: {floor(_stable(s))}"
        raise UserError("schedule.decay_fraction", at, f"set {f'schedule.decay_fraction: {most:g} or ' if most else ''}{shorter}")


def longest_warmup(s: Schedule) -> int:
    """Samples of the longest warm-up that the schedule has room for."""
    stable = floor(_stable(s)) if s.shape == "wsd" else s.horizon
    return min(s.horizon - 1, stable, *s.milestones)


def never_reached(s: Schedule) -> tuple[int, ...]:
    """The milestones at or past the end of the schedule, in samples."""
    return tuple(m for m in s.milestones if m >= s.horizon)


def _stable(s: Schedule) -> float:
    """Where the decay of shape wsd begins, in samples."""
    return s.horizon * (1 - s.decay_fraction)
