"""Least squares with intervals by bootstrap: power laws in several quantities, and the loss as a function of data and batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
SPARE = 2
"""How many more points than coefficients a fit needs, so that its error can be estimated."""
RESAMPLED, LEVEL = 400, 90
"""How many bootstrap samples are drawn, and the percentage of them that an interval covers."""
_CONDITION = 1e3
_ZOOMS, _SIDE = 10, 7


@dataclass(frozen=True)
class Estimate:
    """A number with the interval that holds it in LEVEL percent of the resampled fits."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """0.48 (0.45 to 0.52)."""
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"


def regress(features: Array, target: Array) -> tuple[list[Estimate], float] | None:
    """(coefficients with a constant first, root mean square residual) of target [n] on features [n, m].

    None if there are too few points, or where features change together.
    """
    n, m = features.shape
    design = np.column_stack([np.ones(n), features])
    centred = features - features.mean(0) if m else features
    spread = centred.std(0) if m else np.ones(0)
    if n < m + 1 + SPARE or (spread == 0).any() or (m and np.linalg.cond(centred / spread) > _CONDITION):
        return None

    def solve(y: Array) -> Array:
        found: Array = np.linalg.lstsq(design, y, rcond=None)[0].astype(np.float64)
        return found

    best = solve(target)
    left = target - design @ best
    return _with_intervals(best, design @ best, left, m + 1, solve), float(np.sqrt(np.mean(left**2)))


def _with_intervals(best: Array, fitted: Array, left: Array, free: int, solve: Callable[[Array], Array]) -> list[Estimate]:
    """The numbers of a fit with intervals from resampled residuals, widened for the `free` numbers that were fitted."""
    draw, n = np.random.default_rng(0), len(left)
    wide = left * np.sqrt(n / max(n - free, 1))
    again = np.array([solve(fitted + draw.choice(wide, n)) for _ in range(RESAMPLED)])
    low, high = np.percentile(again, [50 - LEVEL / 2, 50 + LEVEL / 2], axis=0)
    return [Estimate(float(b), float(lo), float(hi)) for b, lo, hi in zip(best, low, high, strict=True)]


@dataclass(frozen=True)
class LossFit:
    """L = floor + scale (D / (1 + B/critical))^-power: twice the data at B = critical do what one does at a small batch.

    `critical` is None if only one batch was seen. `missed`: root mean square residual of the loss.
    """

    power: Estimate
    floor: Estimate
    critical: Estimate | None
    missed: float


def fit_loss(horizon: Sequence[float], batch: Sequence[float], loss: Sequence[float]) -> LossFit | str:
    """The loss over horizon and batch (any unit), or why it cannot be fitted."""
    d, b, y = (np.asarray(values, dtype=np.float64) for values in (horizon, batch, loss))
    several = len(set(batch)) > 1
    if len(set(horizon)) < 3 + 2 * (not several) or (several and len(set(batch)) < 3):
        return f"{len(set(horizon))} horizons and {len(set(batch))} batches are too few (3 of each, or 5 horizons at one batch)"
    if len(y) < 4 + SPARE - (not several):
        return f"{len(y)} settings are too few to fit {3 + several} numbers"
    span = [(0.02, 2.0), (np.log(b.min() / 50), np.log(b.max() * 50)) if several else (np.inf, np.inf)]

    def solve(target: Array) -> Array:
        return _zoom(d, b, target, span)

    best = solve(y)
    if several and not span[1][0] + 0.7 < best[1] < span[1][1] - 0.7:
        return "the batches show one side of the critical batch only: add larger or smaller ones"
    fitted = _curve(d, b, best)
    left = y - fitted
    power, critical, floor, _ = _with_intervals(best, fitted, left, 3 + several, solve)
    inside = Estimate(*(float(np.exp(v)) for v in (critical.value, critical.low, critical.high))) if several else None
    return LossFit(power, floor, inside, float(np.sqrt(np.mean(left**2))))


def _curve(d: Array, b: Array, numbers: Array) -> Array:
    power, critical, floor, scale = numbers
    curve: Array = floor + scale * (d / (1 + b / np.exp(critical))) ** -power
    return curve


def _zoom(d: Array, b: Array, y: Array, span: Sequence[tuple[float, float]]) -> Array:
    """[power, log critical, floor, scale] of the least squares: a grid over the first two, which closes in on its best point."""
    (low0, high0), (low1, high1) = span
    several = bool(np.isfinite(low1))
    best = np.zeros(4)
    for _ in range(_ZOOMS):
        first, second = np.linspace(low0, high0, _SIDE), np.linspace(low1, high1, _SIDE) if several else np.array([np.inf])
        power, critical = (grid.ravel() for grid in np.meshgrid(first, second))
        x = (d / (1 + b / np.exp(critical)[:, None])) ** -power[:, None]
        x0, y0 = x - x.mean(1, keepdims=True), y - y.mean()
        scale = (x0 @ y0) / np.maximum((x0**2).sum(1), 1e-300)
        missed = ((y0 - scale[:, None] * x0) ** 2).sum(1)
        at = int(np.argmin(missed))
        best = np.array([power[at], critical[at], y.mean() - scale[at] * x[at].mean(), scale[at]])
        step0, step1 = (high0 - low0) / (_SIDE - 1), (high1 - low1) / (_SIDE - 1) if several else 0.0
        low0, high0 = max(power[at] - step0, span[0][0]), min(power[at] + step0, span[0][1])
        low1, high1 = (max(critical[at] - step1, span[1][0]), min(critical[at] + step1, span[1][1])) if several else (low1, high1)
    return best
