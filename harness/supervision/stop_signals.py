"""Stop requests: signals set a flag, which the loop checks once a step and agrees on over ranks."""

import os
import signal
import time
from types import FrameType
from typing import final

from harness.supervision.heartbeat import Heartbeat
from harness.supervision.output_redirect import answer

ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
SECOND_S = 2.0
"""A signal this long after the first is a second one. A signal that arrives sooner counts as the same request, delivered twice:
schedulers signal every process, and launchers pass on what they get."""

_STOPPING = "stopping: the run is saved after the current step; "


def stopping(number: int) -> str:
    """What a person at the terminal is told when signal `number` asks for a stop."""
    return _STOPPING + ("press Ctrl-C again to stop now" if number == signal.SIGINT else "a second signal stops it now")


@final
class StopFlag:
    """Up after SIGTERM, SIGINT or SIGUSR1; the second signal ends the process at once. SIGHUP, which also says that the parent
    is gone, only raises it. As a context it restores the handlers."""

    def __init__(self) -> None:
        self.up = False
        self.signals: int | None = None
        """Descriptor of the file to which signals are written as they arrive (signal_record.py)."""
        self.heard = 0
        """How many of them had arrived when a handler ran last."""
        self._pulse: Heartbeat | None = None
        self._asked: int = 0
        self._asked_s = 0.0
        self._over = False
        self.answers = False
        """Whether a person may be at this process's terminal, and is to be told that the signal was heard."""

    def __enter__(self) -> "StopFlag":
        self._before = {n: signal.signal(n, self._raise) for n in ASKING}
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup, SIGHUP stays ignored
            self._before[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._raise)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self.up = True
        if self.signals is not None:
            self.heard = os.fstat(self.signals).st_size
        if number == signal.SIGHUP or self._over:
            return
        if not self._asked:
            self._asked, self._asked_s = number, time.monotonic()
            if self.answers:
                answer(stopping(number))
            if self._pulse is not None:
                self._pulse.stopping(number)
        elif time.monotonic() - self._asked_s > SECOND_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def tell(self, heartbeat: Heartbeat) -> None:
        """From now on, record stop requests in `heartbeat`, too."""
        self._pulse = heartbeat
        if self._asked:
            heartbeat.stopping(self._asked)

    def over(self) -> None:
        """Everything is saved and reported: from now on signals have no effect."""
        self._over = True

    def __call__(self) -> bool:
        """Whether a stop was asked for."""
        return self.up
