"""Several sources in one order: after any number of samples each source has had its share of them, to within one sample.

Which source comes next repeats with a period, so that any place is found in O(1) in both directions. Within the period sources are
chosen by the algorithm of Tijdeman (The chairman assignment problem, 1980): of k sources no share is off by more than 1 - 1/(2k-2).
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import final

import numpy as np

from harness.config.errors import UserError
from harness.data.sample_order import SampleOrder
from harness.data.shuffles import Indices

LONGEST = 100_000
"""The longest period: shares are whole multiples of 1/period."""


def shares(weights: Sequence[float]) -> list[int]:
    """Weights as samples of each source in a period. Raises UserError if they cannot be had exactly."""
    odd = next((w for w in weights if not (math.isfinite(w) and w > 0)), None)
    if odd is not None:
        raise UserError("recipe.weights", f"holds {odd:g}", "give each source a weight above 0, or leave the source out")
    exact = [Fraction(str(w)) for w in weights]
    whole = [w / sum(exact) for w in exact]
    period = math.lcm(*(w.denominator for w in whole))
    if period > LONGEST:
        at = f"of {', '.join(f'{w:g}' for w in weights)} repeat only after {period:,} samples"
        raise UserError("recipe.weights", at, f"round them to multiples of 1/{LONGEST:,}")
    return [int(w * period) for w in whole]


def pattern(counts: Sequence[int]) -> Indices:
    """Which source each place of a period has: int64 [sum(counts)]."""
    period, slack = sum(counts), 1 - 1 / (2 * len(counts) - 2) if len(counts) > 1 else 0.0
    taken = [0] * len(counts)
    chosen = np.empty(period, np.int64)
    for place in range(period):
        owed = [(place + 1) * count / period - had for count, had in zip(counts, taken, strict=True)]
        due = [number for number in range(len(counts)) if owed[number] >= 1 - slack - 1e-9]
        number = min(due, key=lambda i: (slack - owed[i]) / counts[i])
        taken[number] += 1
        chosen[place] = number
    return chosen


@final
class MixedOrder(SampleOrder):
    """Sources one after another in one data set, each in its own order, mixed by weights. An epoch of a source is its own."""

    def __init__(self, orders: Sequence[SampleOrder], weights: Sequence[float]) -> None:
        """Raises UserError for weights that make no order."""
        self.n = sum(order.n for order in orders)
        self._orders = list(orders)
        self._first = np.cumsum([0, *(order.n for order in orders)])
        self._counts = np.array(shares(weights))
        self._pattern = pattern(self._counts.tolist())
        self._places = [np.flatnonzero(self._pattern == number) for number in range(len(orders))]
        self._earlier = np.empty(len(self._pattern), np.int64)
        for places in self._places:
            self._earlier[places] = np.arange(len(places))

    def take(self, start: int, stop: int) -> Indices:
        """See SampleOrder.take."""
        periods, places = np.divmod(np.arange(start, stop, dtype=np.int64), len(self._pattern))
        sources = self._pattern[places]
        draws = periods * self._counts[sources] + self._earlier[places]
        out = np.empty(stop - start, np.int64)
        for number in np.unique(sources).tolist():
            here = np.flatnonzero(sources == number)
            first, last = int(draws[here[0]]), int(draws[here[-1]])
            out[here] = self._orders[number].take(first, last + 1) + self._first[number]
        return out

    def positions(self, sample: int, stop: int) -> list[int]:
        """See SampleOrder.positions."""
        number = int(np.searchsorted(self._first, sample, side="right")) - 1
        draws = self._orders[number].positions(sample - int(self._first[number]), self.drawn(stop)[number])
        count, places = int(self._counts[number]), self._places[number]
        return [draw // count * len(self._pattern) + int(places[draw % count]) for draw in draws]

    def drawn(self, stop: int) -> list[int]:
        """Samples of each source before stream position `stop`."""
        periods, rest = divmod(stop, len(self._pattern))
        return [
            periods * int(count) + int(np.searchsorted(places, rest))
            for count, places in zip(self._counts, self._places, strict=True)
        ]
