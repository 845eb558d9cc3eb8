"""When processes began; and a wall clock that is set while they run, as Python sees it (time.time, time.time_ns). For tests alone.

Children have it through `site`, beside this file, and the variable CLOCK, which names a file: in it is by how many
seconds the clock is wrong at the moment. The monotonic clock is the kernel's, and right.
"""

import os
import time
from pathlib import Path


def from_environment() -> None:
    """Put the clock that the variable CLOCK asks for in place of the real one."""
    name = os.environ.get("CLOCK")
    if not name:
        return
    path, real_ns = Path(name), time.time_ns

    def wrong_ns() -> int:
        return real_ns() + int(path.read_text() or 0) * 1_000_000_000

    time.time_ns = wrong_ns
    time.time = lambda: wrong_ns() / 1e9


def set_clock(path: Path, seconds: int) -> None:
    """From now on the clock is wrong by so many seconds."""
    draft = path.with_suffix(".draft")
    draft.write_text(str(seconds))
    draft.replace(path)


def began_s(pid: int) -> float:
    """When a process was started, by the monotonic clock, to a hundredth of a second."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    up_s = float(Path("/proc/uptime").read_text().split()[0])
    return time.monotonic() - (up_s - ticks / os.sysconf("SC_CLK_TCK"))
