"""Heartbeat and signals of a rank, set up before anything heavy is imported; and the rank's end when its parent is gone."""

import faulthandler
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, final

from harness.plan.world import Place
from harness.supervision.exit_codes import FAILED, end
from harness.supervision.heartbeat import Heartbeat
from harness.supervision.launch_env import Launched, launched
from harness.supervision.output_redirect import redirect, say
from harness.supervision.signal_record import recorded
from harness.supervision.stop_signals import StopFlag
from harness.supervision.temporary_folders import remove_dead

BEAT_S = 0.25
ORPHAN_S = 30.0
"""How long a rank whose parent or launcher is gone may take to save; then it ends itself."""
DEAF_S = 20.0
"""How long the main thread may stay in a wait after SIGTERM and run no handler: longer than the work that a GPU has queued, shorter
than the 30 s after which torchrun kills. Its peers are gone then."""


@final
@dataclass(frozen=True)
class Presence:
    """How a rank is observed and stopped. `launched` is None if not our launcher started it."""

    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    stop: StopFlag = field(default_factory=StopFlag)
    launched: Launched | None = None


@contextmanager
def present(environ: Mapping[str, str], here: Place, *, started: bool) -> Iterator[Presence]:
    """Set up heartbeat, signals and the watching thread of the rank at `here`.

    `started`: a launcher of any kind is the parent; this process ends with it.
    """
    told = launched(environ)
    if told is not None:
        redirect(told, told.own(here))
    if not here.local_rank:
        remove_dead()
    path = None if told is None else told.heartbeat(told.own(here))
    with StopFlag() as stop:
        heartbeat = Heartbeat(path)  # signals may arrive from here on: the heartbeat holds the process id
        stop.tell(heartbeat)
        stop.answers = not started and told is None
        if stop.answers:  # accelerate launch gives one process alone no rank
            yield Presence(heartbeat, stop, told)
            return
        with recorded(path) as signals:
            stop.signals = os.dup(signals)
            args = (heartbeat, stop, stop.signals, told, os.getppid())
            threading.Thread(target=_watch, args=args, name="presence", daemon=True).start()
            yield Presence(heartbeat, stop, told)


def _watch(heartbeat: Heartbeat, stop: StopFlag, signals: int, told: Launched | None, parent: int) -> None:
    """Beat; end this process if it does not react to SIGTERM; if parent or launcher is gone, ask it to stop, then end it too."""
    gone_s: float | None = None
    unheard_s: float | None = None
    asked = read = os.fstat(signals).st_size
    while True:
        heartbeat.beat()
        arrived = os.pread(signals, 64, read)
        read += len(arrived)
        if signal.SIGTERM in arrived:
            asked = read
            unheard_s = unheard_s or time.monotonic()
        if unheard_s is not None and stop.heard >= asked:
            unheard_s = None
        if unheard_s is not None and time.monotonic() - unheard_s > DEAF_S:
            _end_deaf(heartbeat)
        orphan = os.getppid() != parent or (told is not None and not exists(told.launcher))
        if orphan and gone_s is None:
            gone_s = time.monotonic()
            os.kill(os.getpid(), signal.SIGHUP)
        if gone_s is not None and time.monotonic() - gone_s > ORPHAN_S:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(BEAT_S)


def _end_deaf(heartbeat: Heartbeat) -> NoReturn:
    """End this process, which is blocked, and show where."""
    text = f"SIGTERM came {DEAF_S:.0f} s ago, but this rank is blocked in a wait for other ranks"
    heartbeat.ended(FAILED, text)
    say(f"error: {text}")
    faulthandler.dump_traceback(2)
    end(FAILED)


def process_state(pid: int) -> str:
    """The kernel's letter for a process (R, S, D, T stopped, Z dead but not yet reaped, ...); empty if there is none."""
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
