"""Training time apart from everything else: a monotonic clock that can be paused."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds of training since `start`, without the pauses."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._paused = 0.0
        self._mark = 0.0

    @property
    def wall_s(self) -> float:
        """Seconds since the clock was made."""
        return time.monotonic() - self._begin

    @property
    def train_s(self) -> float:
        """Seconds since the clock was made, less all pauses."""
        return self.wall_s - self._paused

    def lap(self) -> float:
        """Training seconds since the last lap."""
        now = self.train_s
        lap, self._mark = now - self._mark, now
        return lap

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Time inside is not training time."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self._paused += time.monotonic() - begin
