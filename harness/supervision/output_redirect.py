"""Output of a process: made printable, and never fatal; and the redirection of the output of ranks that a launcher started."""

from __future__ import annotations

import io
import os
import select
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress

from harness.config.errors import printable

TYPE_CHECKING = False  # as type checkers read it; `widebatch --help` is quicker without typing and pathlib
if TYPE_CHECKING:
    from pathlib import Path
    from typing import TextIO

    from harness.supervision.launch_env import Launched

_COLOURS = {"error:": "31", "fail ": "31", "warn ": "33", "ok ": "32"}
"""Colours (terminal codes) of the words that a line may begin with."""


def echo(text: str) -> None:
    """A line, or several, on standard output. Escape sequences in it, as a folder's name may hold them, are shown as text."""
    print(coloured(printable(text), sys.stdout), flush=True)


def say(text: str) -> None:
    """Print on standard error, as `echo` does; nothing where it can no longer be written."""
    with suppress(OSError, ValueError, SystemExit):  # rich raises SystemExit on a broken pipe while a live line is shown
        print(coloured(printable(text), sys.stderr), file=sys.stderr, flush=True)


def coloured(text: str, stream: TextIO, environ: Mapping[str, str] = os.environ) -> str:
    """The text with the words of _COLOURS in colour, where the stream is a terminal and NO_COLOR is not set."""
    if environ.get("NO_COLOR") or environ.get("TERM") == "dumb" or not stream.isatty():
        return text
    lines = text.split("\n")
    for n, line in enumerate(lines):
        word = next((w for w in _COLOURS if line.startswith(w)), "")
        lines[n] = f"\x1b[{_COLOURS[word]}m{word}\x1b[0m{line[len(word) :]}" if word else line
    return "\n".join(lines)


def answer(text: str) -> None:
    """Answer a signal at once, from its handler: printed only on a terminal, on a new line."""
    with suppress(OSError):
        if os.isatty(2):
            os.write(2, f"\r\n{text}\r\n".encode())


class Stream(io.RawIOBase):
    """Writes to a descriptor. `failed` says what becomes of bytes that it does not take: whether to write them once more.

    Those that are not are counted in `lost`; when the descriptor takes bytes again, it is reported how many it lacks.
    """

    def __init__(self, fd: int, failed: Callable[[OSError], bool]) -> None:
        self._fd, self._failed = fd, failed
        self.lost = self._lacks = 0

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def write(self, data: object) -> int:
        """Take all of `data`."""
        raw = left = memoryview(data)  # type: ignore[arg-type]
        while left:
            try:
                if self._lacks:
                    os.write(self._fd, b"\n[%d bytes of output could not be written here]\n" % self._lacks)
                    self._lacks = 0
                left = left[os.write(self._fd, left) :]
            except BlockingIOError:  # the descriptor may have been made non-blocking by its owner
                select.select([], [self._fd], [])
            except OSError as e:
                if not self._failed(e):
                    self.lost, self._lacks = self.lost + len(left), self._lacks + len(left)
                    break
        return len(raw)


class _Dropped:
    """Bytes that standard output or error did not take are lost; the first loss is reported."""

    def __init__(self) -> None:
        self._said = False

    def __call__(self, error: OSError) -> bool:
        if not self._said:
            self._said = True
            text = f"warn   output cannot be written ({error.strerror}) and is lost; training continues, and the journal has it all"
            with suppress(OSError):  # not by `say`: it may be standard error itself that fails, in the midst of a write
                os.write(2, f"{coloured(text, sys.stderr)}\n".encode())
        return False


def open_missing() -> None:
    """Give this process a standard input, output and error where it was started without (`>&-`), and let none refuse a character.

    Else the next file that is opened would get what is printed.
    """
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # opens the lowest free descriptor
        if vars(sys)[name] is None:
            stream = open(fd, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class OutputError(OSError):
    """Standard output cannot be written: its disk is full, or broken."""


def _refused(error: OSError) -> bool:
    if isinstance(error, BrokenPipeError):
        raise error
    raise OutputError(error.errno, f"standard output cannot be written ({error.strerror})") from error


def end_on_lost_output() -> None:
    """From here on what standard output does not take raises OutputError, or BrokenPipeError where nobody reads it any more."""
    if sys.stdout is sys.__stdout__:  # else somebody has put another in its place
        sys.stdout = _text(1, _refused, vars(sys)["stdout"].encoding)


def drop_output() -> None:
    """Whatever is still to be written goes nowhere: Python flushes once more when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def outlive_readers() -> None:
    """From here on no output ends this process: what is printed when nobody reads (`| head`) or a disk is full is lost."""
    dropped = _Dropped()
    for fd, name in ((1, "stdout"), (2, "stderr")):
        stream = vars(sys)[name]
        buffer = stream.buffer if isinstance(stream, io.TextIOWrapper) else None
        ours = isinstance(buffer, io.BufferedWriter) and isinstance(buffer.raw, Stream)
        if ours or stream is vars(sys)[f"__{name}__"]:  # else somebody has put another in its place
            setattr(sys, name, _text(fd, dropped, stream.encoding))


def redirect(told: Launched, rank: int) -> None:
    """Point this process's output, that of C libraries too, to where the launcher wants it."""
    log = told.log(rank)
    for path in (log, os.devnull) if rank else (told.output, log, os.devnull):
        try:
            _point(path)
            break
        except OSError:
            continue
    elsewhere = rank == 0

    def failed(error: OSError) -> bool:
        """The launcher is gone, and its end of the pipe or terminal with it; or the log's disk is full."""
        nonlocal elsewhere
        if not elsewhere:
            return False
        with suppress(OSError):
            _point(log)
            elsewhere = False
        return not elsewhere

    sys.stdout, sys.stderr = (_text(fd, failed, "utf-8") for fd in (1, 2))


def _text(fd: int, failed: Callable[[OSError], bool], encoding: str) -> io.TextIOWrapper:
    raw = io.BufferedWriter(Stream(fd, failed))
    return io.TextIOWrapper(raw, encoding, "backslashreplace", line_buffering=True)


def _point(path: Path | str) -> None:
    """Standard output and error to a log (a Path), or to another file."""
    from harness.supervision.log_file import open_log  # of ranks alone

    flags = os.O_WRONLY | os.O_APPEND | os.O_NOCTTY
    fd = os.open(path, flags | os.O_CREAT, 0o644) if isinstance(path, str) else open_log(path, flags)
    for to in (1, 2):
        os.dup2(fd, to)
    os.close(fd)
