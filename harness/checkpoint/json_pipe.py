"""JSON lines over a pipe between a rank and its writer, with waiting that has an end. No torch in here."""

import json
import os
import select
import time
from typing import Any, final


@final
class JsonLineReader:
    """The lines that come out of a file descriptor."""

    def __init__(self, source: int) -> None:
        self._source, self._held, self.ended = source, bytearray(), False

    def next(self, limit_s: float | None) -> dict[str, Any] | None:
        """The next line, waited for at most so long (None: for ever).

        None if no line has come yet, or the pipe was closed (`ended`).
        """
        deadline = None if limit_s is None else time.monotonic() + limit_s
        while (end := self._held.find(b"\n")) < 0 and not self.ended:
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            if not select.select([self._source], [], [], left)[0]:
                return None
            got = os.read(self._source, 1 << 20)
            self._held += got
            self.ended = not got
        if end < 0:
            return None
        line: dict[str, Any] = json.loads(self._held[:end])
        del self._held[: end + 1]
        return line


def send(target: int, line: dict[str, Any]) -> None:
    """Write one line. Raises OSError if nobody reads any more."""
    left = memoryview(json.dumps(line).encode() + b"\n")
    while left:
        left = left[os.write(target, left) :]
