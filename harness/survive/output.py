"""Where the output of a rank goes that `widebatch launch` started: each to its log, rank 0's through the launcher."""

import io
import os
import sys
from pathlib import Path
from typing import final

from harness.survive.launched import Launched


@final
class _Survivor(io.RawIOBase):
    """Writes to a descriptor; when nobody reads there any more, to the file `spare` from then on."""

    def __init__(self, fd: int, spare: Path) -> None:
        self._fd, self._spare = fd, spare

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def write(self, data: object) -> int:
        """Write some bytes of `data`."""
        raw = memoryview(data)  # type: ignore[arg-type]
        try:
            return os.write(self._fd, raw)
        except OSError:  # the launcher is gone, and its end of the FIFO or terminal with it
            _point(self._spare, (1, 2))
            return os.write(self._fd, raw)


def _point(path: Path, descriptors: tuple[int, ...]) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOCTTY, 0o644)
    for to in descriptors:
        os.dup2(fd, to)
    os.close(fd)


def redirect(told: Launched, rank: int) -> None:
    """Point this process's output, that of C libraries too, to where the launcher wants it."""
    log = told.log(rank)
    if rank:
        _point(log, (1, 2))
        return
    try:
        _point(Path(told.output), (1, 2))
    except OSError:
        _point(log, (1, 2))
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(_Survivor(1, log)), encoding="utf-8", errors="replace", line_buffering=True)
    sys.stderr = io.TextIOWrapper(io.BufferedWriter(_Survivor(2, log)), encoding="utf-8", errors="replace", write_through=True)
