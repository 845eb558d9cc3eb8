"""Training time apart from everything else: a monotonic clock whose pauses have names."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds of training since `start`, without the pauses."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._mark = 0.0
        self.pauses: dict[str, float] = {}

    @property
    def wall_s(self) -> float:
        """Seconds since the clock was made."""
        return time.monotonic() - self._begin

    @property
    def train_s(self) -> float:
        """Seconds since the clock was made, less all pauses."""
        return self.wall_s - sum(self.pauses.values())

    def lap(self) -> float:
        """Training seconds since the last lap."""
        now = self.train_s
        lap, self._mark = now - self._mark, now
        return lap

    def discard(self, name: str) -> None:
        """The lap so far was no training, but `name`'s time."""
        seconds = self.lap()
        self.pauses[name] = self.pauses.get(name, 0.0) + seconds
        self._mark -= seconds

    @contextmanager
    def pause(self, name: str) -> Iterator[None]:
        """Time inside is not training time, but `name`'s."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self.pauses[name] = self.pauses.get(name, 0.0) + time.monotonic() - begin
