"""Time of a run: training apart from everything else, by a monotonic clock whose pauses have names; and how old the run is."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self, final


class Clock:
    """Seconds of training since `start`, without the pauses."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._mark = 0.0
        self._paused_s: float | None = None
        self.pauses: dict[str, float] = {}

    @property
    def wall_s(self) -> float:
        """Seconds since the clock was made."""
        return time.monotonic() - self._begin

    @property
    def train_s(self) -> float:
        """Seconds since the clock was made, less all pauses. It stands still in a pause."""
        now_s = self.wall_s if self._paused_s is None else self._paused_s
        return now_s - sum(self.pauses.values())

    def lap(self) -> float:
        """Training seconds since the last lap."""
        now = self.train_s
        lap, self._mark = now - self._mark, now
        return lap

    def discard(self, name: str) -> None:
        """Count the lap so far as the pause `name`, not as training."""
        seconds = self.lap()
        self.pauses[name] = self.pauses.get(name, 0.0) + seconds
        self._mark -= seconds

    @contextmanager
    def pause(self, name: str) -> Iterator[None]:
        """Time inside the context counts as the pause `name`, not as training. Pauses do not nest."""
        begin = self._paused_s = self.wall_s
        try:
            yield
        finally:
            self._paused_s = None
            self.pauses[name] = self.pauses.get(name, 0.0) + self.wall_s - begin


@final
@dataclass(frozen=True)
class Age:
    """How long ago a run first began. `before_s`: what it was at the start of this process, None if that cannot be known.

    Within a process the monotonic clock counts. Between two processes there is only the wall clock, so `began` is set again by the
    clock of the moment: a clock that is set while a process runs changes nothing, and one that is set between two processes adds
    what it was set by, or, where it was set back so far that the run would be younger than what is known of it, makes the age
    unknown.
    """

    before_s: float | None = 0.0
    _since: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, began: float | None, least_s: float) -> Self:
        """The age of a run that began at this time (Unix), and has lasted at least so many seconds."""
        age_s = None if began is None else time.time() - began
        return cls(None if age_s is None or age_s < least_s else age_s)

    @property
    def seconds(self) -> float | None:
        """The age now."""
        return None if self.before_s is None else self.before_s + time.monotonic() - self._since

    @property
    def began(self) -> float | None:
        """When the run first began, by the wall clock of now (Unix)."""
        age_s = self.seconds
        return None if age_s is None else time.time() - age_s
