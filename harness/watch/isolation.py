"""Isolation of watchers, so that none ends a run: one that raises misses that event; a line on standard error says so, and it is
counted."""

import traceback
from bdb import BdbQuit
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import final

from harness.config.errors import UserError
from harness.supervision.output_redirect import say
from harness.telemetry.events import NAMES, Event

_LONGEST = 400
"""Characters of an error message that are shown."""


def describe(error: BaseException) -> str:
    """An exception in one line: its type, its message, and where it was raised."""
    if isinstance(error, UserError):  # a UserError says itself what is wrong and where
        return str(error)
    text = " ".join("".join(traceback.format_exception_only(error)).split())
    return (text if len(text) <= _LONGEST else f"{text[:_LONGEST]}...") + place_of(error)


def place_of(error: BaseException) -> str:
    """Where an exception was raised, in the file that our code called; nothing where the call itself failed."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first frame is ours, which called
    line = next((f.lineno for f in reversed(frames) if f.filename == frames[0].filename), None)
    return f" ({Path(frames[0].filename).name} line {line})" if line else ""


@final
class Isolation:
    """The failures of the watcher `name`: each is counted in `missed`, and the first of its kind is reported."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._reported: set[tuple[str, str]] = set()
        self.missed: Counter[str] = Counter()

    def failed(self, what: str, error: BaseException) -> None:
        """The watcher raised `error` on `what`. A debugger that was quit inside it ends the run as it would anywhere."""
        if isinstance(error, BdbQuit):
            raise error
        self.missed[what] += 1
        sort = type(error).__name__, place_of(error)
        if sort not in self._reported:
            self._reported.add(sort)
            say(f"warn   {self._name} failed on {what}: {describe(error)}; training continues, more of these are only counted")

    @contextmanager
    def around(self, what: str) -> Iterator[None]:
        """Isolate a block of code."""
        try:
            yield
        except (Exception, SystemExit) as e:  # noqa: BLE001  that is what this class is for
            self.failed(what, e)

    def summarize(self, total: int) -> None:
        """At the end, how many of `total` events were missed; nothing if it was all reported before."""
        if sum(self.missed.values()) > len(self._reported):
            kinds = ", ".join(f"{count} {what}" for what, count in self.missed.items())
            say(f"warn   {self._name} missed {sum(self.missed.values())} of {total} events: {kinds}")


@final
class Isolated:
    """Calls `watcher` with each event, and `close` at the end. Only KeyboardInterrupt and a debugger that was quit come out."""

    def __init__(self, name: str, watcher: Callable[[Event], None], close: Callable[[], None] = lambda: None) -> None:
        self._watcher, self._close = watcher, close
        self._isolation = Isolation(name)
        self._total = 0

    def __call__(self, event: Event) -> None:
        """Hand an event over."""
        self._total += 1
        try:
            self._watcher(event)
        except (Exception, SystemExit) as e:  # noqa: BLE001  that is what this class is for
            self._isolation.failed(NAMES[type(event)], e)

    @property
    def missed(self) -> int:
        """Events that the watcher could not take."""
        return sum(self._isolation.missed.values())

    def miss(self, event: Event) -> None:
        """Count an event that the watcher cannot take, for a reason that has been reported."""
        self._isolation.missed[NAMES[type(event)]] += 1

    def close(self) -> None:
        """Close the watcher, and say how many events it missed."""
        with self._isolation.around("close"):
            self._close()
        self._isolation.summarize(self._total)
