"""Is a run well? From its losses and from how far its steps move the weights: diverging, dead, or erratic. Pure values.

The loss's level is the median of its last LEVEL values. A run diverges when the level is well above its start, or when it gives up
half of what it had won since; both by more than the losses scatter. NEWEST losses in a row far above the start are a divergence at
once, even if those after them are lower: what such steps do to the weights seldom heals.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import median
from typing import Any

from harness.stats.spikes import FLAGGED, Spikes

START, NEWEST, LEVEL, MEMORY = 3, 3, 20, 50
ABOVE, BLOWN_UP, GIVEN_UP, SCATTER = 0.2, 2.0, 0.5, 6.0
"""Above the start by these shares of it, the second at once; of what was won; in median deviations: what is a divergence."""
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
    `blown_up`: NEWEST losses in a row stood far above the start in the last window. `sick`: the run diverged or died, and its new
    losses have not shown yet that it is well.
    """

    start: tuple[float, ...] = ()
    recent: tuple[float, ...] = ()
    lowest: float | None = None
    scatter: float = 0.0
    ratios: Spikes = field(default_factory=Spikes)
    erratic: bool = False
    still: int = 0
    sick: bool = False
    blown_up: bool = False

    def after(self, losses: Sequence[float], ratio: float | None) -> "Health":
        """With a window's losses and its update-to-weight ratio (None: not measured)."""
        finite = [x for x in losses if math.isfinite(x)]
        start = (*self.start, *finite[: START - len(self.start)]) if len(self.start) < START else self.start
        recent = (*self.recent, *finite)[-MEMORY:]
        level, lowest, scatter = _level(recent), self.lowest, self.scatter
        middles = _middles([*self.recent[1 - NEWEST :], *finite])
        blown_up = bool(start) and max(middles, default=-math.inf) - median(start) > BLOWN_UP * abs(median(start))
        if level is not None and (lowest is None or level < lowest):
            lowest, scatter = level, median([abs(x - level) for x in recent[-LEVEL:]])
        moved = Health(start, recent, lowest, scatter, *self._moved(ratio), self.sick, blown_up)
        return replace(moved, sick=not moved.well(None)) if self.sick else moved

    def _moved(self, ratio: float | None) -> tuple[Spikes, bool, int]:
        """(ratios, erratic, still) after a window's update-to-weight ratio."""
        if ratio is None:
            return self.ratios, self.erratic, self.still
        if not math.isfinite(ratio) or ratio <= 0:
            return self.ratios, False, self.still + 1 if ratio == 0 else self.still
        (score,), ratios = self.ratios.judged([math.log(ratio)])
        unusual = score is not None and score > FLAGGED and ratio > ERRATIC_LEAST
        return ratios, unusual or ratio > ERRATIC_MOST, 0

    def forgiven(self, *, ill: bool) -> "Health":
        """After the guard has acted: what was seen is not held against the run twice. `ill`: it was about the losses."""
        return replace(self, recent=() if ill else self.recent, erratic=False, still=0, sick=self.sick or ill, blown_up=False)

    @cached_property
    def level(self) -> float | None:
        """Median of the last LEVEL losses; None before there are so many."""
        return _level(self.recent)

    @property
    def began(self) -> float | None:
        """Median of the first losses; None before there is one."""
        return median(self.start) if self.start else None

    @property
    def diverging(self) -> bool:
        """Whether the level is above the start, or has given up much of what was won."""
        level, began, lowest = self.level, self.began, self.lowest
        if began is None:
            return False
        if self.blown_up:
            return True
        if level is None or lowest is None:
            return False
        chance = SCATTER * self.scatter
        if level - began > max(ABOVE * abs(began), chance):
            return True
        return level - lowest > max(GIVEN_UP * (began - lowest), chance) and lowest < began

    def well(self, uniform: float | None, evaluated: float | None = None) -> bool:
        """Whether this state is one to go back to: the last NEWEST losses have kept three quarters of what was won.

        Neither one of them nor the validation loss of this very state (`evaluated`; None: not known) lies well above the start. A
        loss that is not below `uniform`, that of a model that has learnt nothing, is no such state, except before the first.
        """
        began, last = self.began, self.recent[-NEWEST:]
        if began is None or len(self.recent) < (NEWEST if self.sick else 1):
            return not self.sick
        newest, lowest = median(last), min(began if self.lowest is None else self.lowest, began)
        if uniform is not None and newest > (1 - DEAD_NEAR) * uniform:
            return False
        chance = SCATTER * self.scatter
        for loss in (*last, began if evaluated is None else evaluated):
            if not loss - began <= max(ABOVE * abs(began), chance):
                return False
        return newest - lowest <= max(GIVEN_UP / 2 * (began - lowest), ABOVE / 2 * abs(began) if self.lowest is None else chance)

    def dead(self, uniform: float | None) -> bool:
        """Whether MEMORY losses taught nothing, or the weights have stood still for two windows.

        They taught nothing where all stood at the uniform loss, or where none was better than that or than the start. A run that
        began far above the uniform loss and falls is not dead.
        """
        if uniform is None or len(self.recent) < MEMORY or self.began is None:
            return self.still >= 2
        least, most, near = min(self.recent), max(self.recent), DEAD_NEAR
        at_uniform = least > (1 - near) * uniform and (most < (1 + near) * uniform or least > (1 - near) * self.began)
        return at_uniform or self.still >= 2

    @staticmethod
    def from_json(tree: Mapping[str, Any]) -> "Health":
        """From what `dataclasses.asdict` gave."""
        own = {"start": tuple(tree["start"]), "recent": tuple(tree["recent"]), "ratios": Spikes.from_json(tree["ratios"])}
        return Health(**{**tree, **own})


def _middles(losses: Sequence[float]) -> list[float]:
    """The medians of NEWEST losses in a row."""
    return [median(losses[at : at + NEWEST]) for at in range(len(losses) - NEWEST + 1)]


def _level(recent: Sequence[float]) -> float | None:
    return median(recent[-LEVEL:]) if len(recent) >= LEVEL else None
