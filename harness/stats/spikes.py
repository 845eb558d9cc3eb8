"""How unusual a value is against those before it, by median and MAD: one spike, or a NaN, does not blind it to the next.

z = 0.6745 (x - median) / MAD (Iglewicz & Hoaglin 1993). Losses of a model that has learnt most have a long upper tail, of which z
alone would call every hundredth value a spike; so a spike must also stand far beyond what the memory itself reaches. A value that
is not finite or is flagged never enters the memory. Measured in tests/test_spikes.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

MEMORY = 128
LEAST = 20
"""Values before which nothing can be said."""
FLAGGED = 10.0
"""z beyond which a value is a spike. Upwards only: a loss that falls is no trouble."""
REACH = 4.0
"""How many times as far from the median as the memory's second largest value a spike lies at least."""


@dataclass(frozen=True)
class Spikes:
    """The values that were usual, the newest last, and how many were spikes. Frozen: `after` gives the next.

    LEAST spikes in a row (`running`) are a new level and no spikes: the memory starts anew.
    """

    memory: tuple[float, ...] = ()
    count: int = 0
    running: int = 0

    def scores(self, values: Sequence[float], least: float = 0.0) -> list[float | None]:
        """z of each value, cut to FLAGGED where it is no spike; None while there is too little to compare with.

        A spike stands out by more than `least` as well. The median and its spread are taken once for all of them: a window's values
        are scored against those before the window.
        """
        if len(self.memory) < LEAST:
            return [None] * len(values)
        middle, spread, reach = self._usual
        beyond = middle + max(REACH * reach, least)
        return [_score(x, middle, spread, beyond) if math.isfinite(x) else None for x in values]

    def limit(self, z: float) -> float | None:
        """The value whose score would be `z`; None while there is too little to compare with, or nothing varies."""
        if len(self.memory) < LEAST:
            return None
        middle, spread, _ = self._usual
        return middle + z * spread / 0.6745 if spread else None

    def beyond(self) -> float | None:
        """The value beyond which one is a spike; None as for `limit`."""
        usual = self.limit(FLAGGED)
        if usual is None:
            return None
        middle, _, reach = self._usual
        return max(usual, middle + REACH * reach)

    def after(self, values: Sequence[float], least: float = 0.0) -> "Spikes":
        """With a window's values, as `judged` has it."""
        return self.judged(values, least)[1]

    def judged(self, values: Sequence[float], least: float = 0.0) -> tuple[list[float | None], "Spikes"]:
        """(`scores`, with a window's values: those that are not finite are left out, those that are spikes counted)."""
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

    @cached_property
    def _usual(self) -> tuple[float, float, float]:
        """(median, median deviation, how far the second largest value lies above the median) of the memory."""
        ordered = sorted(self.memory)
        middle = _middle(ordered)
        return middle, _deviation(ordered, middle), ordered[-2] - middle

    @staticmethod
    def from_json(tree: Mapping[str, Any]) -> "Spikes":
        """From what `dataclasses.asdict` gave."""
        return Spikes(tuple(tree["memory"]), tree["count"], tree["running"])


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
    z = 0.6745 * (value - middle) / spread if spread else math.inf if value > middle else 0.0
    return z if value > beyond else min(z, FLAGGED)
