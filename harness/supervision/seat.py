"""A rank's seat: the process that the launching process knows as the rank. It starts the rank as a child, and outlives it.

torchrun and accelerate launch end all ranks as soon as one of their processes dies. Where the others are to continue, its seat
stays until they have ended. What the seat is told by signals it passes on.
"""

import os
import select
import signal
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from harness.supervision.exit_codes import STOPPED
from harness.supervision.heartbeat import read
from harness.supervision.launch_env import Launched

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
LOOK_S = 0.2
_ENDED_WELL = (0, STOPPED)


def can_watch() -> bool:
    """Whether this machine lets a process wait for the end of another (pidfd_open, Linux 5.3)."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


def take_seat(told: Launched, rank: int, ranks: int) -> None:
    """Return in a child, which is the rank; this process ends with it, or after all others where it was killed.

    To be called before there are threads, and before anything heavy is imported.
    """
    child = os.fork()
    if child:
        _sit(told, child, [told.heartbeat(other) for other in range(ranks) if other != rank])


def _sit(told: Launched, child: int, others: list[Path]) -> NoReturn:
    agent, asked = os.getppid(), False

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = asked or number == signal.SIGTERM
        try:
            os.kill(child, number)
        except ProcessLookupError:
            return

    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, forward)
    ended = os.pidfd_open(child)
    while not select.select([ended], [], [], LOOK_S)[0]:
        if os.getppid() != agent:
            os._exit(1)  # the rank notices, and saves
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status >= 0:
        os._exit(status)
    child = 0x7FFFFFFF  # no process has this id: a signal that comes now is for a rank that is gone
    while not asked and os.getppid() == agent and Path(f"/proc/{told.launcher}").exists() and not _over(others):
        time.sleep(LOOK_S)
    os._exit(0 if all((beat := read(path)) is not None and beat.status in _ENDED_WELL for path in others) else 1)


def _over(others: list[Path]) -> bool:
    """Whether all other ranks have ended, in whatever way."""
    beats = [read(path) for path in others]
    return all(b is None or b.status is not None or not Path(f"/proc/{b.pid}").exists() for b in beats)
