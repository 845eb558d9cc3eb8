"""Is a run well? From its losses and from how far its steps move the weights: diverging, dead, or erratic. Pure values.

The loss's level is the median of its last LEVEL values. A run diverges when the level is well above its start, or when it gives up
half of what it had won since; both by more than the losses scatter.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from harness.stats.spikes import FLAGGED, Spikes

START, NEWEST, LEVEL, MEMORY = 10, 5, 20, 50
ABOVE, GIVEN_UP, SCATTER = 0.2, 0.5, 6.0
"""Of the start's loss, of what was won, in median deviations: what a loss must exceed to be diverging."""
DEAD_NEAR = 0.01
"""A level within this share of the uniform loss has learnt nothing."""
ERRATIC_LEAST, ERRATIC_MOST = 0.1, 1.0
"""Norm of the update over that of the weights: below the first never erratic, above the second always."""
MANY_BAD = 3
"""Steps of one window that were not finite: the run, and not a sample, is at fault."""


@dataclass(frozen=True)
class Health:
    """`start` are the first losses, `recent` the newest, `lowest` the lowest level so far and `scatter` the median deviation there.

    Losses that are not finite are left out.
    `ratios` holds the logarithms of the update-to-weight ratio, one a window; `still` counts windows whose weights stood still.
    """

    start: tuple[float, ...] = ()
    recent: tuple[float, ...] = ()
    lowest: float | None = None
    scatter: float = 0.0
    ratios: Spikes = field(default_factory=Spikes)
    erratic: bool = False
    still: int = 0

    def after(self, losses: Sequence[float], ratio: float | None) -> "Health":
        """With a window's losses and its update-to-weight ratio (None: not measured)."""
        finite = [x for x in losses if math.isfinite(x)]
        start = (*self.start, *finite[: max(START - len(self.start), 0)])
        moved = replace(self, start=start, recent=(*self.recent, *finite)[-MEMORY:])
        level = moved.level
        if level is not None and (self.lowest is None or level < self.lowest):
            moved = replace(moved, lowest=level, scatter=median(abs(x - level) for x in moved.recent[-LEVEL:]))
        return moved if ratio is None else moved._moved(ratio)

    def _moved(self, ratio: float) -> "Health":
        if not math.isfinite(ratio) or ratio <= 0:
            return replace(self, erratic=False, still=self.still + 1 if ratio == 0 else self.still)
        score = self.ratios.scores([math.log(ratio)])[0]
        unusual = score is not None and score > FLAGGED and ratio > ERRATIC_LEAST
        return replace(self, ratios=self.ratios.after([math.log(ratio)]), erratic=unusual or ratio > ERRATIC_MOST, still=0)

    def forgiven(self) -> "Health":
        """After the guard has acted: what was seen is answered, and is not held against the run twice."""
        return replace(self, recent=(), erratic=False, still=0)

    @property
    def level(self) -> float | None:
        """Median of the last LEVEL losses; None before there are so many."""
        return median(self.recent[-LEVEL:]) if len(self.recent) >= LEVEL else None

    @property
    def began(self) -> float | None:
        """Median of the first losses; None before there are START."""
        return median(self.start) if len(self.start) == START else None

    @property
    def diverging(self) -> bool:
        """Whether the level is above the start, or has given up much of what was won."""
        level, began, lowest = self.level, self.began, self.lowest
        if level is None or began is None or lowest is None:
            return False
        if level - began > max(ABOVE * abs(began), SCATTER * median(abs(x - began) for x in self.start)):
            return True
        return level - lowest > max(GIVEN_UP * (began - lowest), SCATTER * self.scatter) and lowest < began

    @property
    def well(self) -> bool:
        """Whether this state is one to go back to: the last NEWEST losses, too, have kept three quarters of what was won."""
        began, lowest = self.began, self.lowest
        if began is None or lowest is None:
            return True
        newest, chance = median(self.recent[-NEWEST:] or (lowest,)), SCATTER * self.scatter
        return newest - min(lowest, began) <= max(GIVEN_UP / 2 * (began - lowest), chance)

    def dead(self, uniform: float | None) -> bool:
        """Whether all of MEMORY losses stood at the uniform loss, or the weights have stood still for two windows."""
        at_uniform = (
            uniform is not None and len(self.recent) == MEMORY and all(abs(x / uniform - 1) < DEAD_NEAR for x in self.recent)
        )
        return at_uniform or self.still >= 2

    @staticmethod
    def from_json(tree: Mapping[str, Any]) -> "Health":
        """From what `dataclasses.asdict` gave."""
        own = {"start": tuple(tree["start"]), "recent": tuple(tree["recent"]), "ratios": Spikes.from_json(tree["ratios"])}
        return Health(**{**tree, **own})
