"""The critical batch from how many steps a target took at several batches.

S steps and E = B S samples reach a target at batch B, with (S/S_min - 1)(E/E_min - 1) = 1 (McCandlish et al. 2018, 1812.06162,
section 2.3). Solved for S that is S = S_min + E_min / B: half of all efficiency is gone at B_crit = E_min / S_min.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PERFECT = 1.25
"""Samples to the target, over the fewest that any smaller batch took, up to which scaling is called perfect."""
FEWER = 0.9
"""Steps to the target, over the fewest at a smaller batch, above which a larger batch is called of no use."""


@dataclass(frozen=True)
class Fit:
    """Steps that no batch gets below, and samples that no batch gets below."""

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

    None where fewer than three batches are given, or where they show only one side of the curve (a minimum that is not positive).
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
    """Batches up to which scaling was perfect, and up to which a larger one still saved steps (Shallue et al. 2019, 1811.03600)."""

    perfect: int
    useful: int
    largest: int


def regimes(steps: Mapping[int, float]) -> Regimes:
    """The regimes of {batch: steps to the target}; a batch that never got there is left out by the caller."""
    batches = sorted(steps)
    perfect = useful = batches[0]
    fewest_samples, fewest_steps, still = batches[0] * steps[batches[0]], steps[batches[0]], True
    for batch in batches[1:]:
        still = still and batch * steps[batch] <= PERFECT * fewest_samples
        if still:
            perfect = batch
        if steps[batch] <= FEWER * fewest_steps:
            useful = batch
        fewest_samples, fewest_steps = min(fewest_samples, batch * steps[batch]), min(fewest_steps, steps[batch])
    return Regimes(perfect, max(perfect, useful), batches[-1])
