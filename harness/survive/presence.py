"""A rank among the living: its pulse beats, its signals are caught before anything heavy is imported, it outlives no parent."""

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from harness.plan.world import Place
from harness.survive.launched import Launched, launched
from harness.survive.output import redirect
from harness.survive.pulse import Pulse
from harness.survive.stopping import StopFlag

BEAT_S = 0.25
ORPHAN_S = 30.0
"""How long a rank whose parent or launcher is gone may take to save; then it ends itself."""


@final
@dataclass(frozen=True)
class Presence:
    """What a rank has to be seen and stopped by. `launched` is None where not our launcher started it."""

    pulse: Pulse = field(default_factory=Pulse)
    stop: StopFlag = field(default_factory=StopFlag)
    launched: Launched | None = None


@contextmanager
def present(environ: Mapping[str, str], here: Place, *, started: bool) -> Iterator[Presence]:
    """Be present as the rank that stands `here`. `started`: a launcher of any kind is the parent; this process ends with it."""
    told = launched(environ)
    if told is not None:
        redirect(told, told.own(here))
    pulse = Pulse()
    with StopFlag() as stop:
        if told is not None:  # only now may signals come: the pulse tells the launcher where to
            pulse = Pulse(told.pulse(told.own(here)))
            stop.tell(pulse)
        if started or told is not None:  # accelerate launch gives one process alone no rank
            watch = threading.Thread(target=_watch, args=(pulse, told, os.getppid()), name="presence", daemon=True)
            watch.start()
        yield Presence(pulse, stop, told)


def _watch(pulse: Pulse, told: Launched | None, parent: int) -> None:
    """Beat; and when parent or launcher is gone ask for a stop, then end this process."""
    gone_s: float | None = None
    while True:
        pulse.beat()
        orphan = os.getppid() != parent or (told is not None and not exists(told.launcher))
        if orphan and gone_s is None:
            gone_s = time.monotonic()
            os.kill(os.getpid(), signal.SIGHUP)
        if gone_s is not None and time.monotonic() - gone_s > ORPHAN_S:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(BEAT_S)


def process_state(pid: int) -> str:
    """The kernel's letter for a process (R, S, D, T stopped, Z dead but not yet reaped, ...); empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def exists(pid: int) -> bool:
    """Whether a process is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
