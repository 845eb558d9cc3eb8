"""Rows of a series of any length, in memory that does not grow with it: all of a short one, and of a long one every n-th."""

from collections.abc import Callable
from typing import Generic, TypeVar, final

Row = TypeVar("Row")
MOST = 1 << 14
"""Rows that are kept of a series: many more than a mean or a median of it needs."""


@final
class EveryNth(Generic[Row]):
    """Every n-th row, and the last. n is doubled each time that there would be more than `most`."""

    def __init__(self, most: int = MOST) -> None:
        self._most, self._nth, self._seen = most, 1, 0
        self._kept: list[Row] = []
        self._last: list[Row] = []

    def add(self, row: Row) -> None:
        """One more row."""
        if self._seen % self._nth:
            self._last = [row]
        else:
            self._kept.append(row)
            self._last = []
            if len(self._kept) > self._most:
                self._kept = self._kept[::2]
                self._nth *= 2
                self._last = [] if self._seen % self._nth == 0 else [row]
        self._seen += 1

    def drop_while(self, unwanted: Callable[[Row], bool]) -> None:
        """Drop rows from the end, as long as they are `unwanted`."""
        if self._last and not unwanted(self._last[0]):
            return
        dropped = bool(self._last)
        self._last = []
        while self._kept and unwanted(self._kept[-1]):
            self._kept.pop()
            dropped = True
        if dropped:
            self._seen = len(self._kept) * self._nth

    def rows(self) -> list[Row]:
        """The rows that are kept, in order."""
        return [*self._kept, *self._last]
