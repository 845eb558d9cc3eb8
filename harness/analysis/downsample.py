"""A curve of any length in a few hundred buckets, in one pass: each keeps its mean, lowest and highest value, so no spike is lost.

A bucket holds equally many points. Where there are too many buckets, neighbours are joined two by two: memory stays the same.
"""

import math
from dataclasses import dataclass
from typing import final

BUCKETS = 600
"""Most buckets of a curve: about one for each pixel that a chart is wide."""
WAITING = 256
"""How many points wait until they are sorted into buckets together."""


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
        self._xs: list[float] = []  # points that are not in a bucket yet, and their values
        self._ys: list[float] = []
        self._end = -math.inf

    def add(self, x: float, y: float) -> None:
        """One more point; `y` may be NaN or infinite."""
        if x <= self._end:
            self.rewind(math.nextafter(x, -math.inf))
        self._end = x
        self._xs.append(x)
        self._ys.append(y)
        if len(self._xs) == WAITING:
            self._sort_in()

    def _sort_in(self) -> None:
        """Put the points that wait into buckets: as many at a time as one has room for."""
        xs, ys, self._xs, self._ys = self._xs, self._ys, [], []
        at = 0
        while at < len(xs):
            bucket = self._open(xs[at])
            room = self._per - int(bucket[2])
            part = ys[at : at + room]
            at += len(part)
            bucket[1] = xs[at - 1]
            bucket[2] += len(part)
            total = sum(part)
            if not math.isfinite(total):
                part = [y for y in part if math.isfinite(y)]
                total = sum(part)
            if part:
                bucket[3] += len(part)
                bucket[4] += total
                bucket[5], bucket[6] = min(bucket[5], min(part)), max(bucket[6], max(part))

    def _open(self, x: float) -> list[float]:
        """The bucket for a point at x, which has room."""
        for _ in range(2):  # a bucket of two that were full is full
            if self._held and self._held[-1][2] < self._per:
                return self._held[-1]
            if len(self._held) < self._most:
                break
            self._join()
        self._held.append([x, x, 0, 0, 0.0, math.inf, -math.inf])
        return self._held[-1]

    def rewind(self, x: float) -> None:
        """Drop the points past `x`. A bucket that contains `x` is dropped as a whole."""
        self._sort_in()
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
        self._sort_in()
        return [_bucket(*b) for b in self._held]


def _bucket(first: float, last: float, points: float, finite: float, total: float, low: float, high: float) -> Bucket:
    if not finite:
        return Bucket(first, last, 0, math.nan, math.nan, math.nan, int(points))
    mean = min(max(total / finite, low), high)  # rounding of the sum may exceed the bounds
    return Bucket(first, last, int(finite), mean, low, high, int(points - finite))
