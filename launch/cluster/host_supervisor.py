"""This host's part of a run on several: its ranks are watched and stopped on request, and torchrun starts them again.

Each host has such a watch of its own, and knows the ranks of that host alone. What ends a rank ends the others', for they lose it;
so a fault is answered once, where it arose: with restarts while they help, else by leaving.
"""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from harness.config.schema import RestartConfig
from harness.supervision.exit_codes import FAILED, STOPPED
from harness.supervision.fault_detection import Fault, RankStatus, first_failure, furthest, hung
from harness.supervision.launch_env import Launched, memory_files
from harness.supervision.output_redirect import say
from launch.cluster.torchrun import JOIN_S, host_logs
from launch.processes.checkpoints import newest
from launch.processes.command import Command
from launch.processes.output_relay import Output
from launch.processes.proc_table import kill, look
from launch.processes.restart_policy import Restarts
from launch.processes.spawn import Child, start
from launch.processes.supervisor import LAST_WORDS_S, LOOK_S, STATUS, Stop, log_sizes, sweep, words_of

NEWS_S = 1.0
"""How long this host's other ranks may take to report how they ended, before one is named as the first to fail."""
SPARE_S = 30.0
"""A collective that takes too long raises by itself. A rank that makes no progress for so much longer is in none."""
END_S = 300.0
"""How long ranks and torchrun may take to leave after a stop."""


def attend(command: Command, folder: Path, place: str, ranks: int, restart: RestartConfig) -> int:
    """Run `command`, a torchrun with `ranks` ranks on this host, to the end of its part of the run in `folder`; the exit status.

    `place` is where the run's checkpoints lie.
    """
    logs = host_logs(folder)
    with Output(logs / "rank-0.log") as output, Stop() as stop:
        pulses, errors = memory_files(ranks), memory_files(ranks)
        told = Launched(os.getpid(), str(logs), output.path, several=True, pulses=pulses, errors=errors)
        before = log_sizes(told, ranks)
        child = start(command, told.environ(), logs / "launcher.log")
        restarts = Restarts(restart.budget, micro=1, checkpoint=newest(place))
        watch = Watch(child, told, ranks, place, restart, restarts, output, stop, before)
        try:
            return watch.run()
        finally:
            sweep(child, output, 0.0 if stop.twice else LAST_WORDS_S)


@final
@dataclass
class Watch:
    """The ranks of this host under one torchrun. `answered`: the processes whose end has been answered; `ended`: by us.
    `seen_s`: when a rank was there last. `before`: bytes of the ranks' logs that are of an earlier start."""

    child: Child
    told: Launched
    ranks: int
    place: str
    restart: RestartConfig
    restarts: Restarts
    output: Output
    stop: Stop
    before: dict[int, int]
    answered: set[int] = field(default_factory=set)
    ended: set[int] = field(default_factory=set)
    left: bool = False
    seen_s: float = field(default_factory=time.monotonic)

    def run(self) -> int:
        """Watch to the end of this host's part; the exit status."""
        while True:
            self.output.pump(LOOK_S)
            gone = self.child.poll()  # read before the ranks are looked at: whoever ended until then has reported it
            looks = look(self.told, self.ranks)
            if self.stop.twice:
                return 128 + self.stop.twice
            if self.stop.asked:
                self._leave()
            if any(x.alive for x in looks):
                self.seen_s = time.monotonic()
            elif gone is not None:
                return self._ended(gone, looks)
            elif time.monotonic() - self.seen_s > JOIN_S + SPARE_S:
                return self._cut_off(looks)
            fault = None if self.stop.asked else self._fault(looks)
            status = None if fault is None else self._answer(fault, looks)
            if status is not None:
                return status

    def _fault(self, looks: Sequence[RankStatus]) -> Fault | None:
        """A fault that has not been answered yet.

        Ranks that hang are killed, so that torchrun notices: they are in no collective, which would have raised by itself.
        """
        fault = first_failure([x for x in looks if x.beat is not None and x.beat.pid not in self.answered])
        if fault is not None:
            return fault
        limits = self.restart.hang_s + SPARE_S, self.restart.start_s + SPARE_S
        standing = [x for x in looks if x.beat is not None and x.beat.pid not in self.ended]
        fault = hung(standing, time.monotonic(), 0.0, *limits) if standing else None
        for pid in _running(standing) if fault is not None else ():
            kill(pid, signal.SIGKILL)
            self.ended.add(pid)
        return fault

    def _answer(self, fault: Fault, looks: Sequence[RankStatus]) -> int | None:
        """Report a fault, once; returns the exit status if a restart would not help."""
        pids = {x.beat.pid for x in looks if x.beat is not None}
        deadline = time.monotonic() + NEWS_S
        while fault.kind != "hung" and time.monotonic() < deadline:
            self.output.pump(LOOK_S)
            fault = first_failure([x for x in look(self.told, self.ranks) if x.beat is not None and x.beat.pid in pids]) or fault
        self.answered |= pids
        if fault.kind == "lost":
            say(f"note: {_at(fault)}; the hosts restart their ranks together")
            return None
        after = self.restarts.after(fault, newest(self.place))
        if fault.kind == "memory":
            after = "every host must be given a smaller --batch.micro"
        if isinstance(after, str):
            self._leave()
            return self._give_up(fault, after)
        self.restarts = after
        say(f"{words_of(fault, self.told, self.before)}note: {_at(fault)}; restart {after.used} of {after.budget}")
        self.before = log_sizes(self.told, self.ranks)
        return None

    def _leave(self) -> None:
        """Ask torchrun, once, to stop on this host: it stops the ranks, which save, and leaves the rendezvous."""
        if not self.left:
            self.left = True
            self.child.signal(signal.SIGTERM)

    def _ended(self, gone: int, looks: Sequence[RankStatus]) -> int:
        """The exit status, torchrun and all ranks having ended."""
        statuses = {x.beat.status for x in looks if x.beat is not None}
        if gone == 0 or statuses == {0}:
            return 0
        if self.stop.asked and statuses <= {STOPPED}:
            return STOPPED
        if statuses == {STOPPED} and gone > 0:
            say("note: stopped with a checkpoint at another host's request; the hosts did not restart together")
            return STOPPED
        at = f"the process that starts the ranks ended with {gone}, see {self.told.logs}/launcher.log,"
        return self._give_up(first_failure(looks) or Fault("agent", None, furthest(looks), at), "torchrun has given up")

    def _cut_off(self, looks: Sequence[RankStatus]) -> int:
        """No rank started within torchrun's timeout: it waits for a host that cannot be reached. Returns the exit status."""
        self.child.signal(signal.SIGKILL)
        return self._give_up(
            Fault("agent", None, furthest(looks), "no rank started"), f"the hosts did not connect within {JOIN_S} s"
        )

    def _give_up(self, fault: Fault, why: str) -> int:
        """Say what ended this host's part, once; the exit status."""
        deadline = time.monotonic() + END_S
        while not self.stop.twice and time.monotonic() < deadline:
            self.output.pump(LOOK_S)
            if self.child.poll() is not None and not _running(look(self.told, self.ranks)):
                break
        if fault.kind == "user":
            say(f"error: {fault.text}")
        elif fault.kind != "guard":  # rank 0 has explained the guard's stop
            again = f"logs of this host's ranks: {self.told.logs}\nto resume: the same command"
            say(f"{words_of(fault, self.told, self.before)}error: {_at(fault)}; giving up: {why}\n{again}")
        return STATUS.get(fault.kind, FAILED)


def _running(looks: Sequence[RankStatus]) -> list[int]:
    """The processes that have not ended."""
    return [x.beat.pid for x in looks if x.beat is not None and x.alive and x.beat.status is None]


def _at(fault: Fault) -> str:
    """A fault with its host: ranks are numbered within the host."""
    return f"on {os.uname().nodename} {'' if fault.rank is None else 'local '}{fault}"
