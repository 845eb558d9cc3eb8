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
class _Stage:
    """Which source each place has, from a stream position on, as long as the weights are these."""

    def __init__(self, weights: Sequence[float]) -> None:
        self.counts = np.array(shares(weights))
        self.pattern = pattern(self.counts.tolist())
        self.places = [np.flatnonzero(self.pattern == number) for number in range(len(weights))]
        self.earlier = np.empty(len(self.pattern), np.int64)
        for places in self.places:
            self.earlier[places] = np.arange(len(places))

    def drawn(self, stop: int) -> Indices:
        """Samples of each source among the first `stop` of the stage: int64 [sources]."""
        periods, rest = divmod(stop, len(self.pattern))
        found: Indices = periods * self.counts + np.array([int(np.searchsorted(places, rest)) for places in self.places])
        return found

    def draws(self, start: int, stop: int) -> tuple[Indices, Indices]:
        """(the source, which of its samples in the stage) at places [start, stop) of the stage: int64 [n] each."""
        periods, places = np.divmod(np.arange(start, stop, dtype=np.int64), len(self.pattern))
        sources = self.pattern[places]
        return sources, periods * self.counts[sources] + self.earlier[places]

    def place(self, source: int, draw: int) -> int:
        """Where a source's sample `draw` of the stage is in it."""
        period, rest = divmod(draw, int(self.counts[source]))
        return period * len(self.pattern) + int(self.places[source][rest])


@final
class MixedOrder(SampleOrder):
    """Sources one after another in one data set, each in its own order, mixed by weights. An epoch of a source is its own.

    `then`: (stream position, weights from there on), positions in order. Each source continues where it was.
    """

    def __init__(
        self, orders: Sequence[SampleOrder], weights: Sequence[float], then: Sequence[tuple[int, Sequence[float]]] = ()
    ) -> None:
        """Raises UserError for weights that make no order."""
        self.n = sum(order.n for order in orders)
        self.orders = list(orders)
        self._first = np.cumsum([0, *(order.n for order in orders)])
        self._starts = np.array([0, *(start for start, _ in then)])
        self._stages = [_Stage(part) for part in (weights, *(part for _, part in then))]
        lengths = np.diff(self._starts)
        drawn = [stage.drawn(int(length)) for stage, length in zip(self._stages, lengths, strict=False)]
        self._before = np.cumsum([np.zeros(len(orders), np.int64), *drawn], axis=0)

    def take(self, start: int, stop: int) -> Indices:
        """See SampleOrder.take."""
        first, last = np.searchsorted(self._starts, [start, max(stop - 1, start)], side="right").tolist()
        if first < last:
            middle = int(self._starts[first])
            return np.concatenate([self.take(start, middle), self.take(middle, stop)])
        begin = int(self._starts[first - 1])
        sources, draws = self._stages[first - 1].draws(start - begin, stop - begin)
        draws = draws + self._before[first - 1][sources]
        out = np.empty(stop - start, np.int64)
        for number in np.unique(sources).tolist():
            here = np.flatnonzero(sources == number)
            a, b = int(draws[here[0]]), int(draws[here[-1]])
            out[here] = self.orders[number].take(a, b + 1) + self._first[number]
        return out

    def positions(self, sample: int, stop: int) -> list[int]:
        """See SampleOrder.positions."""
        number = int(np.searchsorted(self._first, sample, side="right")) - 1
        draws = self.orders[number].positions(sample - int(self._first[number]), self.drawn(stop)[number])
        return [self._position(number, draw) for draw in draws]

    def drawn(self, stop: int) -> list[int]:
        """Samples of each source before stream position `stop`."""
        at = max(int(np.searchsorted(self._starts, stop, side="right")) - 1, 0)
        found: list[int] = (self._before[at] + self._stages[at].drawn(stop - int(self._starts[at]))).tolist()
        return found

    def _position(self, number: int, draw: int) -> int:
        at = int(np.searchsorted(self._before[:, number], draw, side="right")) - 1
        return int(self._starts[at]) + self._stages[at].place(number, draw - int(self._before[at, number]))
