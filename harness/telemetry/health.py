"""Is a run well? From its losses and from how far its steps move the weights: diverging, dead, or erratic. Pure values.

The loss's level is the median of its last LEVEL values. A run diverges when the level is well above its start, or when it loses
half of its improvement since; both by more than the losses scatter. It diverges too when two validations in a row and the newest
losses have lost half of the improvement of the best validation. NEWEST losses in a row far above the start are a divergence
at once, even if those after them are lower: what such steps do to the weights seldom heals. A run is dead when it learns
nothing, or when it validates as if it never had.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from statistics import median

from harness.telemetry.spikes import FLAGGED, LEAST_LOG, RESOLUTION, Spikes

START, NEWEST, LEVEL, MEMORY = 3, 3, 20, 50
ABOVE, BLOWN_UP, GIVEN_UP = 0.2, 2.0, 0.5
"""A divergence: shares of the start by which the loss exceeds it (the second counts at once), and the share of the improvement that
is lost."""
SCATTER, SCATTER_LEAST = 6.0, 5.0
"""How many deviations chance may explain: of a level, and of the smallest of its losses. The first alone misses a run that a few
steps of a ruinous rate threw back to its start: it was learning fast, so that the losses of its lowest level lay far apart. The
second is by what one loss differs from the next."""
DEAD_NEAR = 0.01
"""A run whose level is within this share of the uniform loss has learnt nothing."""
ERRATIC_LEAST, ERRATIC_MOST = 0.1, 1.0
"""Norm of the update over that of the weights: below the first never erratic, above the second always."""
MANY_BAD = 3
"""From this many non-finite steps in one window on, the run and not a sample is at fault."""


@dataclass(frozen=True)
class Health:
    """`start` are the first losses, `recent` the newest, `lowest` the lowest level so far and `scatter` the median deviation there.

    Losses that are not finite are left out. `steady` is their scatter without the trend: the median distance of one loss from the
    next, over the square root of 2. `deepest` is the lowest median of NEWEST losses in a row.
    `ratios` holds the logarithms of the update-to-weight ratio, one a window; `still` counts windows whose weights stood still.
    `blown_up`: NEWEST losses in a row stood far above the start in the last window. `sick`: the run diverged or died, and its new
    losses have not shown yet that it is well. `validated` are the two newest validation losses, `best_validated` is the lowest.
    """

    start: tuple[float, ...] = ()
    recent: tuple[float, ...] = ()
    lowest: float | None = None
    scatter: float = 0.0
    steady: float = 0.0
    ratios: Spikes = field(default_factory=Spikes)
    erratic: bool = False
    still: int = 0
    sick: bool = False
    blown_up: bool = False
    validated: tuple[float, ...] = ()
    best_validated: float | None = None
    deepest: float | None = None

    def after(self, losses: Sequence[float], ratio: float | None) -> "Health":
        """The state after a window with these losses and this update-to-weight ratio (None: not measured)."""
        finite = [x for x in losses if math.isfinite(x)]
        start = (*self.start, *finite[: START - len(self.start)]) if len(self.start) < START else self.start
        recent = (*self.recent, *finite)[-MEMORY:]
        level, lowest, scatter, steady = _level(recent), self.lowest, self.scatter, self.steady
        newest = [*self.recent[1 - NEWEST :], *finite]
        middles = _middles(newest)
        known = [] if self.deepest is None else [self.deepest]
        highest = max(_leasts(newest), default=-math.inf)
        blown_up = bool(start) and highest - median(start) > max(BLOWN_UP * abs(median(start)), SCATTER * self.scatter)
        if level is not None and (lowest is None or level < lowest):
            lowest, scatter = level, median([abs(x - level) for x in recent[-LEVEL:]])
            steady = median([abs(b - a) for a, b in pairwise(recent[-LEVEL:])]) / math.sqrt(2)
        moved = replace(
            self._moved(ratio),
            start=start,
            recent=recent,
            lowest=lowest,
            scatter=scatter,
            steady=steady,
            deepest=min([*middles, *known], default=None),
            blown_up=blown_up,
        )
        return replace(moved, sick=not moved.well(None)) if self.sick else moved

    def _moved(self, ratio: float | None) -> "Health":
        """The state after a window's update-to-weight ratio."""
        if ratio is None:
            return self
        if not math.isfinite(ratio) or ratio <= 0:
            return replace(self, erratic=False, still=self.still + 1 if ratio == 0 else self.still)
        (score,), ratios = self.ratios.judged([math.log(ratio)], LEAST_LOG)
        unusual = score is not None and score > FLAGGED and ratio > ERRATIC_LEAST
        return replace(self, ratios=ratios, erratic=unusual or ratio > ERRATIC_MOST, still=0)

    def after_validation(self, loss: float) -> "Health":
        """The state after a validation loss; one that is not finite counts as worse than any."""
        best = self.best_validated
        if math.isfinite(loss) and (best is None or loss < best):
            best = loss
        return replace(self, validated=(*self.validated, loss)[-2:], best_validated=best)

    def forgiven(self, *, ill: bool) -> "Health":
        """The state after the guard has acted: the same symptoms do not count twice.

        `ill`: the losses showed them (divergence, a dead model), so that their history is dropped.
        """
        known = {"recent": (), "validated": (), "sick": True} if ill else {}
        return replace(self, **known, erratic=False, still=0, blown_up=False)  # type: ignore[arg-type]

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
        """Whether the level is above the start, or has lost much of the improvement so far."""
        level, began, lowest = self.level, self.began, self.lowest
        if began is None:
            return False
        if self.blown_up or self._validates_worse(began):
            return True
        if level is None or lowest is None:
            return False
        if level - began > max(ABOVE * abs(began), SCATTER * self.scatter):
            return True
        won, lost, least_lost = began - lowest, level - lowest, min(self.recent[-LEVEL:]) - lowest
        if won <= RESOLUTION * abs(began):
            return False
        much = GIVEN_UP * won
        return lost > max(much, SCATTER * self.scatter) or least_lost > max(much, SCATTER_LEAST * self.steady)

    def _validates_worse(self, began: float) -> bool:
        """Whether two validations in a row, and the newest losses, have lost much of the best validation's improvement.

        The losses too: a run that overfits does not diverge.
        """
        best, last = self.best_validated, self.recent[-NEWEST:]
        if best is None or len(self.validated) < 2 or len(last) < NEWEST:
            return False
        bar = best + max(GIVEN_UP * (began - best), ABOVE * abs(began))
        return not any(loss <= bar for loss in (*self.validated, median(last)))

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
        """Whether the run learns nothing, has forgotten what it had learnt, or its weights have stood still for two windows.

        It learns nothing where MEMORY losses all stood at the uniform loss, or where none was better than that or than the start. A
        run that began far above the uniform loss and falls is not dead.
        """
        if self.still >= 2 or uniform is None or self.began is None:
            return self.still >= 2
        if self._forgot(uniform):
            return True
        least, most, near = min(self.recent, default=0.0), max(self.recent, default=0.0), DEAD_NEAR
        at_uniform = least > (1 - near) * uniform and (most < (1 + near) * uniform or least > (1 - near) * self.began)
        return len(self.recent) == MEMORY and at_uniform

    def _forgot(self, uniform: float) -> bool:
        """Whether two validations in a row, and the newest losses, are no better than knowing nothing, where losses had been."""
        last = self.recent[-NEWEST:]
        learnt = self.deepest is not None and self.deepest < (1 - ABOVE) * uniform
        if len(self.validated) < 2 or len(last) < NEWEST or not learnt:
            return False
        return not any(loss <= (1 - DEAD_NEAR) * uniform for loss in (*self.validated, median(last)))


def _middles(losses: Sequence[float]) -> list[float]:
    """The medians of NEWEST losses in a row."""
    return [sorted(losses[at : at + NEWEST])[NEWEST // 2] for at in range(len(losses) - NEWEST + 1)]


def _leasts(losses: Sequence[float]) -> list[float]:
    """The least of NEWEST losses in a row."""
    return [min(losses[at : at + NEWEST]) for at in range(len(losses) - NEWEST + 1)]


def _level(recent: Sequence[float]) -> float | None:
    return median(recent[-LEVEL:]) if len(recent) >= LEVEL else None
