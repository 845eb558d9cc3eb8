"""One run on this machine, from its first start to its end: its ranks are watched, stopped on request, and started again.

The ranks are looked at ten times a second. What is thought of the looks is in harness/survive/judge.py and launch/restarts.py.
"""

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import final

from harness.plan.config import RestartConfig
from harness.survive.exits import FAILED, GUARD, MEMORY, USER
from harness.survive.judge import Fault, cut_short, first_failure, furthest, hung, result
from harness.survive.launched import Launched
from launch.command import Command
from launch.local import Child, start
from launch.processes import kill, look, members, there
from launch.restarts import Restarts
from launch.terminal import Output

LOOK_S = 0.1
LAST_WORDS_S = 5.0
"""How long the other ranks of one that failed may take to say so in journal and W&B."""
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
SECOND_S = 0.5
STATUS = {"user": USER, "guard": GUARD, "memory": MEMORY}
"""Of what another start would not better."""


@final
class Stop:
    """What this launcher was asked for by signals. As a context it listens."""

    def __init__(self) -> None:
        self.asked = 0
        self.twice = 0
        self._at_s = 0.0
        self._sent: set[int] = set()

    def __enter__(self) -> "Stop":
        heard = [n for n in STOPS if n != signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]
        self._before = {n: signal.signal(n, self._hear) for n in heard}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if not self.asked:
            self.asked, self._at_s = number, time.monotonic()
        elif time.monotonic() - self._at_s > SECOND_S:
            self.twice = number

    def pass_on(self, pids: list[int]) -> None:
        """Ask each of these ranks once. SIGUSR1 goes past the process between us and them, which would give them 30 seconds."""
        for pid in pids:
            if self.asked and pid not in self._sent:
                self._sent.add(pid)
                kill(pid, signal.SIGUSR1)


def supervise(command: Command, folder: Path, ranks: int, micro: int, restart: RestartConfig, again: str) -> int:
    """Run `command` to the end of the run in `folder`; the exit status. `again` is how a person would start it once more."""
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    restarts, cause = Restarts(restart.budget, micro, checkpoint=newest(folder)), ""
    with Output(logs / "rank-0.log") as output, Stop() as stop:
        while True:
            told = Launched(os.getpid(), str(logs), output.path, cause)
            argv = command.argv if restarts.micro == micro else (*command.argv, "--batch.micro", str(restarts.micro))
            end = _attempt(replace(command, argv=argv), told, ranks, restart, output, stop)
            if isinstance(end, int):
                return end
            after = restarts.after(end, newest(folder))
            if isinstance(after, str) or stop.asked:
                return _give_up(end, "a stop was asked for" if stop.asked else str(after), told, again)
            restarts, cause = after, after.words(end)
            print(f"{words_of(end, told)}note: {cause}", file=sys.stderr, flush=True)


def _attempt(command: Command, told: Launched, ranks: int, restart: RestartConfig, output: Output, stop: Stop) -> int | Fault:
    """One start of the ranks: their exit status, or what went wrong. No process of it is left."""
    for rank in range(ranks):
        told.pulse(rank).unlink(missing_ok=True)
        told.error(rank).unlink(missing_ok=True)
    child = start(command, told.environ(), Path(told.logs) / "launcher.log")
    end: int | Fault = FAILED
    try:
        end = _watch(child, told, ranks, restart, output, stop)
    finally:
        well = isinstance(end, int) and not stop.twice
        sweep(child, output, LAST_WORDS_S if well else 0.0)
    return end


def _watch(child: Child, told: Launched, ranks: int, restart: RestartConfig, output: Output, stop: Stop) -> int | Fault:
    """Look until all ranks have told their end, or one of them went wrong."""
    began_s = time.monotonic()
    while True:
        output.pump(LOOK_S)
        gone = child.poll()  # before the look: who ended meanwhile has said so by then
        looks = look(told, ranks)
        stop.pass_on([x.beat.pid for x in looks if x.beat and x.alive and x.beat.status is None])
        if stop.twice:
            return 128 + stop.twice
        status, short = result(looks), cut_short(looks)
        if status is not None:
            killed = gone == -signal.SIGKILL and not stop.asked and status != 0
            return Fault("agent", None, furthest(looks), "the process that starts the ranks was killed") if killed else status
        if short:
            return 128 + short
        now_s = time.monotonic()
        fault = first_failure(looks) or hung(looks, now_s, began_s, restart.hang_s, restart.start_s)
        if fault is not None:
            if fault.kind != "hung":
                _last_words(told, ranks, output)
            again = look(told, ranks)  # a hang counts when it is seen twice
            fault = first_failure(again) or (
                hung(again, now_s, began_s, restart.hang_s, restart.start_s) if fault.kind == "hung" else fault
            )
            if fault is not None:
                return fault
        if gone is not None and not any(x.alive for x in looks):
            at = f"the process that starts the ranks ended with {gone}, see {told.logs}/launcher.log,"
            return Fault("agent", None, furthest(looks), at)


def _last_words(told: Launched, ranks: int, output: Output) -> None:
    """Let the other ranks say that one of them failed."""
    deadline = time.monotonic() + LAST_WORDS_S
    while time.monotonic() < deadline and any(x.alive for x in look(told, ranks)):
        output.pump(LOOK_S)


def sweep(child: Child, output: Output, patience_s: float) -> None:
    """End every process of an attempt; they may take so long to leave by themselves."""
    deadline = time.monotonic() + patience_s
    while left := members(os.getpid()):
        while left := there(left):
            if time.monotonic() >= deadline:
                for pid in left:
                    kill(pid, signal.SIGKILL)
            output.pump(LOOK_S / 4)
            child.poll()
    child.wait()
    while output.pump(0.0):
        continue


def newest(folder: Path) -> str:
    """The name of the newest committed checkpoint; names sort by age."""
    return max((path.name for path in (folder / "checkpoints").glob("samples-*")), default="")


def words_of(end: Fault, told: Launched) -> str:
    """The traceback of the rank that failed first, where it left one."""
    path = None if end.rank is None or end.kind == "memory" else told.error(end.rank)
    return path.read_text() if path is not None and path.exists() else ""


def _give_up(end: Fault, why: str, told: Launched, again: str) -> int:
    """Say what ended the run, once, and how to go on; the exit status."""
    if end.kind == "user":
        print(f"error: {end.text}", file=sys.stderr)
    elif end.kind != "guard":  # which rank 0 has explained
        text = f"{words_of(end, told)}error: {end}; not started again: {why}\nlogs of all ranks: {told.logs}\nto go on: {again}"
        print(text, file=sys.stderr)
    return STATUS.get(end.kind, FAILED)
