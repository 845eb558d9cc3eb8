"""The output of rank 0 on its way to the terminal and to its log: through a terminal of its own where there is one, else a FIFO.

A live line is redrawn where a person looks, and left out of the log.
"""

import fcntl
import os
import pty
import re
import select
import signal
import sys
import termios
from pathlib import Path
from types import FrameType, TracebackType
from typing import final

_CONTROL = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\x1b[=>]")


def plain(line: bytes) -> bytes:
    """A line as it stood at its end: without control codes, and without what was overwritten before it."""
    return _CONTROL.sub(b"", line.rstrip(b"\r\n").rpartition(b"\r")[2])


@final
class Output:
    """A place for rank 0 to write to, `path`, that `pump` empties to this process's own output and to `log`."""

    def __init__(self, log: Path) -> None:
        self._log = log.open("ab")
        self._rest = b""
        self._fifo: Path | None = None
        if sys.stdout.isatty():
            self._fd, self._slave = pty.openpty()
            self.path = os.ttyname(self._slave)
            self._resize(0, None)
            signal.signal(signal.SIGWINCH, self._resize)
        else:
            self._fifo = log.with_suffix(".fifo")
            self._fifo.unlink(missing_ok=True)
            os.mkfifo(self._fifo, 0o600)
            self._fd = os.open(self._fifo, os.O_RDWR | os.O_NONBLOCK)  # for both ends, so that it is never at its end
            self.path = str(self._fifo)

    def __enter__(self) -> "Output":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        while self.pump(0.0):
            pass
        self._log.write(plain(self._rest))
        self._log.close()
        os.close(self._fd)
        if self._fifo is None:
            signal.signal(signal.SIGWINCH, signal.SIG_DFL)
            os.close(self._slave)
        else:
            self._fifo.unlink(missing_ok=True)

    def pump(self, wait_s: float) -> bool:
        """Pass on what is there, after waiting so long for it at most; whether there was something."""
        if not select.select([self._fd], [], [], wait_s)[0]:
            return False
        data = os.read(self._fd, 1 << 16)
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._log.write(plain(line) + b"\n")
        self._log.flush()
        return True

    def _resize(self, number: int, frame: FrameType | None) -> None:
        size = fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, bytes(8))
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, size)
