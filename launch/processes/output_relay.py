"""The output of rank 0 on its way to the terminal and to its log: through a terminal of its own where there is one, else a pipe.

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
from typing import BinaryIO, final

from harness.config.errors import UserError
from harness.supervision.output_redirect import Stream, say
from harness.supervision.safe_files import append_log, make_own

LONGEST = 1 << 20
"""Bytes of a line; a longer one is cut in the log."""
_CONTROL = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\x1b[=>]")


def plain(line: bytes) -> bytes:
    """A line as it stood at its end: without control codes, and without what was overwritten before it."""
    return _CONTROL.sub(b"", line.rstrip(b"\r\n").rpartition(b"\r")[2])


def _opened(log: Path) -> BinaryIO:
    make_own(log.parent)
    try:
        return append_log(log)
    except OSError as e:
        raise UserError("run.dir", f"{log} cannot be written ({e.strerror})", "make room there, or give another run.dir") from e


@final
class Output:
    """A pipe or terminal for rank 0 to write to, at `path`; `pump` passes its content on to this process's own output and to
    `log`."""

    def __init__(self, log: Path) -> None:
        self._file, self._path = _opened(log), log
        self._log, self._said = Stream(self._file.fileno(), self._not_kept), False
        self._rest = b""
        self._terminal = sys.stdout.isatty()
        if self._terminal:
            self._fd, self._end = pty.openpty()
            self.path = os.ttyname(self._end)
            self._resize(0, None)
            signal.signal(signal.SIGWINCH, self._resize)
        else:
            self._fd, self._end = os.pipe()  # both ends are kept open, so that reading never meets the end of the file
            self.path = f"/proc/{os.getpid()}/fd/{self._end}"

    def __enter__(self) -> "Output":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        while self.pump(0.0):
            pass
        self._log.write(plain(self._rest))
        if self._log.lost:
            say(f"warn   {self._path} lacks {self._log.lost:,} bytes that could not be written")
        self._file.close()
        os.close(self._fd)
        os.close(self._end)
        if self._terminal:
            signal.signal(signal.SIGWINCH, signal.SIG_DFL)

    def pump(self, wait_s: float) -> bool:
        """Pass on the output so far, after waiting for some at most so long; returns whether there was any."""
        if not select.select([self._fd], [], [], wait_s)[0]:
            return False
        data = os.read(self._fd, 1 << 16)
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
        *lines, rest = (self._rest + data).split(b"\n")
        if len(rest) > LONGEST:
            lines, rest = [*lines, rest], b""
        self._log.write(b"".join(plain(line) + b"\n" for line in lines))
        self._rest = rest[rest.rfind(b"\r", 0, -1) + 1 :]  # a progress bar overwrites one line for hours without ending it
        return True

    def _not_kept(self, error: OSError) -> bool:
        """A log that cannot be written, as on a full disk, is reported once, and lacks lines until it can be written again."""
        if not self._said:
            self._said = True
            say(f"warn   {self._path} is not written ({error.strerror}); training continues")
        return False

    def _resize(self, number: int, frame: FrameType | None) -> None:
        size = fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, bytes(8))
        fcntl.ioctl(self._end, termios.TIOCSWINSZ, size)
