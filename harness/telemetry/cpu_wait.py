"""How long this process was ready to run but waited for a CPU, by the kernel's scheduler statistics (Linux)."""

import os
import weakref
from pathlib import Path
from typing import final

STAT = Path("/proc/self/schedstat")
"""schedstat of the main thread: nanoseconds on a CPU, nanoseconds waiting for one, number of time slices."""


@final
class CpuWait:
    """Reads that clock; 0 where the kernel keeps none."""

    def __init__(self, stat: Path = STAT) -> None:
        try:
            self._fd = os.open(stat, os.O_RDONLY | os.O_CLOEXEC)  # kept open: opening it each time would cost ten times as much
            weakref.finalize(self, os.close, self._fd)
        except OSError:
            self._fd = -1
        self._before = self._waited_ns()

    def lap(self) -> float:
        """Seconds waited since the last call."""
        before, self._before = self._before, self._waited_ns()
        return (self._before - before) / 1e9

    def _waited_ns(self) -> int:
        try:
            return int(os.pread(self._fd, 128, 0).split()[1])
        except (OSError, IndexError, ValueError):
            return 0
