"""A curve of any length in a few hundred buckets, in one pass: each keeps its mean, lowest and highest value, so no spike is lost.

A bucket holds equally many points. Where there are too many buckets, neighbours are joined two by two: memory stays the same.
"""

import math
from dataclasses import dataclass
from typing import final

BUCKETS = 600
"""Most buckets of a curve: about one for each pixel that a chart is wide."""


@dataclass(frozen=True)
class Bucket:
    """Points from x `first` to x `last`: `count` finite ones with their mean, lowest and highest value, and `bad` others."""

    first: float
    last: float
    count: int
    mean: float
    low: float
    high: float
    bad: int


@final
class Downsampler:
    """Takes points in the order of x.

    A point at an x that was passed already replaces what lies from there on: the run was rolled back.
    """

    def __init__(self, most: int = BUCKETS) -> None:
        self._most, self._per = most, 1
        self._held: list[list[float]] = []  # buckets: first x, last x, points, finite points, their sum, lowest, highest
        self._end = -math.inf

    def add(self, x: float, y: float) -> None:
        """One more point; `y` may be NaN or infinite."""
        if x <= self._end:
            self.rewind(math.nextafter(x, -math.inf))
        self._end = x
        held = self._held
        if not held or held[-1][2] >= self._per:
            if len(held) == self._most:
                self._join()
            held = self._held
            if not held or held[-1][2] >= self._per:
                held.append([x, x, 0, 0, 0.0, math.inf, -math.inf])
        bucket = held[-1]
        bucket[1] = x
        bucket[2] += 1
        if math.isfinite(y):
            bucket[3] += 1
            bucket[4] += y
            if y < bucket[5]:
                bucket[5] = y
            if y > bucket[6]:
                bucket[6] = y

    def rewind(self, x: float) -> None:
        """Drop the points past `x`. A bucket that contains `x` is dropped as a whole."""
        while self._held and self._held[-1][1] > x:
            self._held.pop()
        self._end = self._held[-1][1] if self._held else -math.inf

    def _join(self) -> None:
        self._per *= 2
        joined = []
        for place in range(0, len(self._held), 2):
            pair = self._held[place : place + 2]
            columns = list(zip(*pair, strict=True))
            sums = [sum(c) for c in columns[2:5]]
            joined.append([columns[0][0], columns[1][-1], *sums, min(columns[5]), max(columns[6])])
        self._held = joined

    def curve(self) -> list[Bucket]:
        """The buckets in the order of x."""
        return [_bucket(*b) for b in self._held]


def _bucket(first: float, last: float, points: float, finite: float, total: float, low: float, high: float) -> Bucket:
    if not finite:
        return Bucket(first, last, 0, math.nan, math.nan, math.nan, int(points))
    mean = min(max(total / finite, low), high)  # rounding of the sum may exceed the bounds
    return Bucket(first, last, int(finite), mean, low, high, int(points - finite))
