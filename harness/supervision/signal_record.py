"""Every signal that this process receives, recorded as it arrives.

Python runs a handler between two instructions of the main thread. One that waits in C, for a GPU or in a collective, comes to none,
and one that aborts never will. What C does at once, for any signal that has a handler, is to write its number to a file.
"""

import faulthandler
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType


@contextmanager
def recorded(path: Path | None) -> Iterator[int]:
    """Inside, signals are appended to the file `path`, a byte each; to one of its own where it is None. Gives its descriptor."""
    try:
        fd = os.open(path or "", os.O_RDWR | os.O_APPEND | os.O_NONBLOCK)
    except OSError:  # no path, or the launcher that provides the file is gone
        fd = os.memfd_create("signals")
        os.set_blocking(fd, False)
    before = signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
    dumps = faulthandler.is_enabled()
    aborting = signal.signal(signal.SIGABRT, _abort)
    if dumps:  # faulthandler's handler was replaced, and is now called first
        faulthandler.disable()
        faulthandler.enable()
    try:
        yield fd
    finally:
        signal.set_wakeup_fd(before)
        signal.signal(signal.SIGABRT, aborting)
        os.close(fd)


def _abort(number: int, frame: FrameType | None) -> None:
    """Handler for a SIGABRT that another process sent: end by it. A process that calls abort() does not return to Python."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
