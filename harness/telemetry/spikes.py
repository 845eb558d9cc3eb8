"""How unusual a value is against those before it, by median and MAD: one spike, or a NaN, does not blind it to the next.

z = 0.6745 (x - median) / MAD (Iglewicz & Hoaglin 1993). Losses of a model that has learnt most have a long upper tail, of which z
alone would call every hundredth value a spike; so a spike must also stand far beyond what the memory itself reaches. A value that
is not finite or is flagged never enters the memory. Measured in tests/unit/test_spikes.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

MEMORY = 128
LEAST = 20
"""Fewest values for a judgement."""
FLAGGED = 10.0
"""z beyond which a value is a spike. Upwards only: a loss that falls is not a problem."""
REACH = 4.0
"""A spike is at least this many times as far from the median as the memory's second largest value."""
RESOLUTION = 1e-5
"""Share of the median: a spread below this is rounding, and the values count as constant."""
NOTABLE = 0.1
"""Share of the median by which a spike exceeds constant values, where `least` is not given."""
LEAST_LOG = math.log(1 + NOTABLE)
"""`least` for logarithms of norms and ratios: a tenth above the usual."""


@dataclass(frozen=True)
class Spikes:
    """Recent values that were no spikes, the newest last, and a count of spikes. Frozen: `after` returns the next state.

    LEAST spikes in a row (`running`) count as a new level, not as spikes: the memory is reset. Values have any one unit.
    Source: the modified z score of Iglewicz & Hoaglin 1993, by median and MAD; the further bounds were measured.
    """

    memory: tuple[float, ...] = ()
    """The last MEMORY values that are finite and no spikes."""
    count: int = 0
    """Spikes so far."""
    running: int = 0
    """Spikes in a row, up to now."""

    def scores(self, values: Sequence[float], least: float = 0.0) -> list[float | None]:
        """z of each value, cut to FLAGGED where it is not a spike; None while there is too little to compare with.

        A spike stands out by more than `least` as well; by `least` alone, or NOTABLE of the median, where the memory does not vary.
        The median and its spread are taken once for all of them: a window's values are scored against those before the window.
        """
        if len(self.memory) < LEAST:
            return [None] * len(values)
        middle, spread, reach = self._usual
        if not self._varies(least):
            least = least or NOTABLE * abs(middle)
            if not least:
                return [None] * len(values)
            spread = 0.6745 * least / FLAGGED
        beyond = middle + max(REACH * reach, least)
        return [_score(x, middle, spread, beyond) if math.isfinite(x) else None for x in values]

    def limit(self, z: float, least: float = 0.0) -> float | None:
        """The value whose score would be `z`, at least `least` above the median.

        None while there is too little to compare with, or nothing varies.
        """
        if len(self.memory) < LEAST or not self._varies(least):
            return None
        middle, spread, _ = self._usual
        return middle + max(z * spread / 0.6745, least)

    def beyond(self, least: float = 0.0) -> float | None:
        """The value beyond which one is a spike; None as for `limit`."""
        usual = self.limit(FLAGGED, least)
        if usual is None:
            return None
        middle, _, reach = self._usual
        return max(usual, middle + REACH * reach)

    def after(self, values: Sequence[float], least: float = 0.0) -> "Spikes":
        """The state after a window's values: the second of `judged`."""
        return self.judged(values, least)[1]

    def judged(self, values: Sequence[float], least: float = 0.0) -> tuple[list[float | None], "Spikes"]:
        """(`scores` of a window's values, the state after them: values that are not finite are left out, spikes counted)."""
        memory, count, running, scores = list(self.memory), self.count, self.running, self.scores(values, least)
        for value, score in zip(values, scores, strict=True):
            if not math.isfinite(value):
                continue
            if score is not None and score > FLAGGED:
                count, running = count + 1, running + 1
                if running == LEAST:
                    memory, running = [], 0
            else:
                memory.append(value)
                running = 0
        return scores, Spikes(tuple(memory[-MEMORY:]), count, running)

    def _varies(self, least: float) -> bool:
        """Whether the memory's spread is more than rounding."""
        middle, spread, _ = self._usual
        return spread > RESOLUTION * max(abs(middle), least)

    @cached_property
    def _usual(self) -> tuple[float, float, float]:
        """(median, median deviation, how far the second largest value lies above the median) of the memory."""
        ordered = sorted(self.memory)
        middle = _middle(ordered)
        return middle, _deviation(ordered, middle), ordered[-2] - middle


def _middle(ordered: Sequence[float]) -> float:
    """The median of values in order."""
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def _deviation(ordered: Sequence[float], middle: float) -> float:
    """The median distance of values in order from their median: half of them lie nearest to it, side by side, from `first` on."""
    half = len(ordered) // 2
    first, last = 0, len(ordered) - half
    while first < last:
        at = (first + last) // 2
        if middle - ordered[at] > ordered[at + half] - middle:
            first = at + 1
        else:
            last = at
    outer = [middle - ordered[first - 1]] if first else []
    outer += [ordered[first + half] - middle] if first + half < len(ordered) else []
    if len(ordered) % 2:
        return min(outer)
    return (max(middle - ordered[first], ordered[first + half - 1] - middle) + min(outer)) / 2


def _score(value: float, middle: float, spread: float, beyond: float) -> float:
    z = 0.6745 * (value - middle) / spread
    return z if value > beyond else min(z, FLAGGED)
