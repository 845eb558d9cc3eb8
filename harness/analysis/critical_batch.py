"""The critical batch from how many steps a target took at several batches.

S steps and E = B S samples reach a target at batch B, with (S/S_min - 1)(E/E_min - 1) = 1 (McCandlish et al. 2018, 1812.06162,
section 2.3). Solved for S that is S = S_min + E_min / B: half of all efficiency is gone at B_crit = E_min / S_min.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PERFECT = 1.15
"""Scaling is called perfect while doubling the batch multiplies the samples to the target by at most this."""
FEWER = 0.9
"""A larger batch is called of little use where its steps to the target, over the fewest at half of it or less, exceed this."""
_ROUNDING = 0.005
"""Relative error of a ratio of whole numbers of steps."""


@dataclass(frozen=True)
class Fit:
    """The fewest steps that any batch can reach, and the fewest samples."""

    least_steps: float
    least_samples: float

    @property
    def critical_batch(self) -> float:
        """E_min / S_min, in samples."""
        return self.least_samples / self.least_steps

    def steps(self, batch: float) -> float:
        """Steps to the target at a batch."""
        return self.least_steps + self.least_samples / batch


def fit(points: Sequence[tuple[int, float]]) -> Fit | None:
    """The curve nearest to (batch, steps to the target), by least squares of relative errors.

    None if fewer than three batches are given, or where they show only one side of the curve (a minimum that is not positive).
    """
    if len({batch for batch, _ in points}) < 3:
        return None
    rows = [(1 / steps, 1 / (batch * steps)) for batch, steps in points]
    aa, ab, bb = (sum(x * y for x, y in pairs) for pairs in ([(a, a) for a, _ in rows], rows, [(b, b) for _, b in rows]))
    a, b = sum(a for a, _ in rows), sum(b for _, b in rows)
    determinant = aa * bb - ab * ab
    if determinant <= 0:
        return None
    least_steps, least_samples = (a * bb - b * ab) / determinant, (aa * b - ab * a) / determinant
    return Fit(least_steps, least_samples) if least_steps > 0 and least_samples > 0 else None


@dataclass(frozen=True)
class Regimes:
    """Batches up to which scaling was perfect, and up to which a larger one still saved steps (Shallue et al. 2019, 1811.03600).

    Each is one of the batches that were compared with half of it, up to `largest`.
    """

    perfect: int
    useful: int
    largest: int


def regimes(steps: Mapping[int, float]) -> Regimes | None:
    """The regimes of {batch: steps to the target}; a batch that never got there is left out by the caller.

    Evaluated per doubling, at powers of two (or doublings of the smallest batch, where the range has no two powers), with the steps
    between two batches read off the curve S_min + E_min / B through both: so the result does not depend on the grid of batches.
    None if the range is less than a doubling.
    """
    first, *further = _doublings(min(steps), max(steps))
    if not further:
        return None
    perfect = useful = first
    fewest, before, still = _steps_at(steps, first), _steps_at(steps, first), True
    for batch in further:
        now = _steps_at(steps, batch)
        still = still and 2 * now <= PERFECT * before * (1 + _ROUNDING)
        perfect = batch if still else perfect
        useful = batch if now <= FEWER * fewest * (1 + _ROUNDING) else useful
        fewest, before = min(fewest, now), now
    return Regimes(perfect, max(perfect, useful), further[-1])


def _doublings(low: int, high: int) -> list[int]:
    """The powers of two from `low` to `high`, or `low` times powers of two if there are fewer than two."""
    powers = [2**n for n in range(low.bit_length() - 1, high.bit_length()) if low <= 2**n <= high]
    return powers if len(powers) > 1 else [low * 2**n for n in range((high // low).bit_length())]


def _steps_at(steps: Mapping[int, float], batch: int) -> float:
    """Steps at a batch within the range of those measured: linear in 1 / batch between its neighbours."""
    if batch in steps:
        return steps[batch]
    below, above = max(b for b in steps if b < batch), min(b for b in steps if b > batch)
    share = (1 / below - 1 / batch) / (1 / below - 1 / above)
    return steps[below] + share * (steps[above] - steps[below])
