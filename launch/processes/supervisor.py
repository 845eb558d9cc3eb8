"""One run on this machine, from its first start to its end: its ranks are watched, stopped on request, and started again.

The ranks are looked at ten times a second. fault_detection.py and restart_policy.py decide what follows.
"""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import final

from harness.analysis.wandb_segments import drop_empty
from harness.config.run_folder import RunFolder
from harness.config.schema import RestartConfig
from harness.supervision.exit_codes import FAILED, GUARD, MEMORY, UNSAVED, USER
from harness.supervision.fault_detection import Fault, RankStatus, cut_short, first_failure, furthest, hung, result
from harness.supervision.held import HeldFolder
from harness.supervision.launch_env import Launched, memory_files
from harness.supervision.output_redirect import answer, say
from harness.supervision.resume_command import after_renaming
from harness.supervision.seat import can_watch
from harness.supervision.step_pace import StepPace
from harness.supervision.stop_signals import stopping
from harness.supervision.temporary_folders import remove_dead
from launch.processes.checkpoints import newest
from launch.processes.command import Command
from launch.processes.output_relay import Output, plain
from launch.processes.proc_table import kill, look, members, there
from launch.processes.restart_policy import Restarts
from launch.processes.spare import Ranks, Spare, start_ranks
from launch.processes.spawn import Child
from launch.processes.survivors import Survivors

LOOK_S = 0.1
LAST_WORDS_S = 5.0
"""How long the other ranks may take to report a rank's failure in the journal and W&B."""
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
SECOND_S = 0.5
LAST_LINES, LAST_BYTES = 8, 4096
"""The most lines and bytes that are shown of the log of a rank that died without a traceback."""
STATUS = {"user": USER, "guard": GUARD, "memory": MEMORY, "unsaved": UNSAVED}
"""Exit statuses of the kinds of faults that a restart would not cure."""


@final
class Stop:
    """The stop that signals requested of this launcher. As a context manager it handles signals."""

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
            if number != signal.SIGHUP:  # the terminal is gone
                answer(stopping(number))
        elif time.monotonic() - self._at_s > SECOND_S:
            self.twice = number

    def pass_on(self, pids: list[int]) -> None:
        """Ask each of these ranks once. SIGUSR1 goes past the process between us and them, which would give them 30 seconds."""
        for pid in pids:
            if self.asked and pid not in self._sent:
                self._sent.add(pid)
                kill(pid, signal.SIGUSR1)


def supervise(command: Command, folder: Path, place: str, ranks: int, micro: int, restart: RestartConfig, again: str) -> int:
    """Run `command` to the end of the run in `folder`; the exit status.

    `place` is where its checkpoints lie, `again` how a person would start it once more.
    """
    logs = RunFolder(folder).logs
    said, restarts, cause = "", Restarts(restart.budget, micro, checkpoint=newest(place)), ""
    held = HeldFolder(folder)
    pulses, errors = memory_files(ranks), memory_files(ranks)
    with Output(logs / "rank-0.log") as output, Stop() as stop, Spare(command, wanted=restart.spares > 0) as spare:
        while True:
            told = Launched(
                os.getpid(), str(logs), output.path, cause, pulses=pulses, errors=errors, in_place=restart.in_place and can_watch()
            )
            argv = command.argv if restarts.micro == micro else (*command.argv, "--batch.micro", str(restarts.micro))
            before = log_sizes(told, ranks)
            survivors = Survivors(restarts, lambda: newest(place))
            end = _attempt(replace(command, argv=argv), told, survivors, restart, output, stop, spare)
            if isinstance(end, int):
                return end
            restarts = survivors.restarts
            after = held.moved() or restarts.after(end, newest(place))
            if isinstance(after, str) or stop.asked:
                why = "a stop was requested" if stop.asked else str(after)
                return _give_up(end, why, _kept(folder, held.now, place, again), words_of(end, told, before), said)
            restarts, cause, words = after, after.words(end), words_of(end, told, before)
            say(f"{words if words != said else ''}note: {cause}")
            said = words


def _attempt(
    command: Command, told: Launched, survivors: Survivors, restart: RestartConfig, output: Output, stop: Stop, spare: Spare
) -> int | Fault:
    """One start of the ranks: their exit status, or what went wrong. No process of it is left."""
    told.clear()
    child = start_ranks(command, told, spare)
    end: int | Fault = FAILED
    try:
        end = _watch(child, told, survivors, restart, output, stop, spare)
    finally:
        well = isinstance(end, int) and not stop.twice
        sweep(child, output, LAST_WORDS_S if well else 0.0, spare.pids)
        drop_empty(Path(told.logs).parent)
    return end


def _watch(
    child: Child | Ranks, told: Launched, survivors: Survivors, restart: RestartConfig, output: Output, stop: Stop, spare: Spare
) -> int | Fault:
    """Look until all ranks have reported their end, or one of them went wrong."""
    limits = _Limits(restart, time.monotonic(), StepPace(restart.hang_factor, restart.hang_least_s))
    while True:
        output.pump(LOOK_S)
        gone = child.poll()  # read before the ranks are looked at: whoever ended until then has reported it
        looks = survivors.among(look(told, len(told.pulses)))
        spare.follow(looks, told)
        stop.pass_on([x.beat.pid for x in looks if x.beat and x.alive and x.beat.status is None])
        ended = _ended(looks, gone, stop)
        if ended is None:
            ended = _fault(survivors.answerable(looks) if told.in_place else looks, told, output, limits)
        if ended is not None:
            return ended
        if gone is not None and not any(x.alive for x in looks):
            at = f"the process that starts the ranks ended with {gone}, see {told.logs}/launcher.log,"
            return Fault("agent", None, furthest(looks), at)


def _ended(looks: Sequence[RankStatus], gone: int | None, stop: Stop) -> int | Fault | None:
    """How the attempt ended, None if it has not: by a second signal, by all ranks' own status, or by a signal to one of them."""
    if stop.twice:
        return 128 + stop.twice
    status, short = result(looks), cut_short(looks)
    if status is None:
        return 128 + short if short else None
    killed = gone == -signal.SIGKILL and not stop.asked and status != 0
    return Fault("agent", None, furthest(looks), "the process that starts the ranks was killed") if killed else status


def _fault(looks: Sequence[RankStatus], told: Launched, output: Output, limits: "_Limits") -> Fault | None:
    """What went wrong first, None if nothing did: a rank that failed, or a hang, which counts when it is seen twice."""
    now_s = time.monotonic()
    limits.pace.see(looks)
    failed = first_failure(looks)
    if failed is not None:
        _last_words(told, looks, output)
        return first_failure(_again(looks, told)) or failed
    if limits.hung(looks, now_s) is None:
        return None
    again = _again(looks, told)
    return first_failure(again) or limits.hung(again, now_s)


@dataclass(frozen=True)
class _Limits:
    """What counts as a hang, in a start of the ranks that began at `began_s`."""

    restart: RestartConfig
    began_s: float
    pace: StepPace

    def hung(self, looks: Sequence[RankStatus], now_s: float) -> Fault | None:
        """See fault_detection.hung."""
        return hung(looks, now_s, self.began_s, self.restart.hang_s, self.restart.start_s, self.pace.limit_s)


def _again(looks: Sequence[RankStatus], told: Launched) -> list[RankStatus]:
    """The same ranks, as they stand now."""
    ranks = {x.rank for x in looks}
    return [x for x in look(told, len(told.pulses)) if x.rank in ranks]


def _last_words(told: Launched, looks: Sequence[RankStatus], output: Output) -> None:
    """Give the other ranks time to report that one of them failed."""
    deadline = time.monotonic() + LAST_WORDS_S
    while time.monotonic() < deadline and any(x.alive for x in _again(looks, told)):
        output.pump(LOOK_S)


def sweep(child: Child | Ranks, output: Output, patience_s: float, kept: Sequence[int] = ()) -> None:
    """End every process of an attempt but those `kept`, and remove what the killed left in the temporary folder.

    They may take `patience_s` to leave by themselves.
    """
    deadline = time.monotonic() + patience_s
    while left := [pid for pid in members(os.getpid()) if pid not in kept]:
        while left := there(left):
            if time.monotonic() >= deadline:
                for pid in left:
                    kill(pid, signal.SIGKILL)
            output.pump(LOOK_S / 4)
            child.poll()
    child.wait()
    while output.pump(0.0):
        continue
    remove_dead()


def words_of(end: Fault, told: Launched, before: Mapping[int, int]) -> str:
    """The traceback of the rank that failed first, where it left one; else the last lines of its log, from byte `before` on.

    A library that ends a process (gloo, where ranks gather unequal rows; CUDA) says why there alone. Rank 0's is on the terminal.
    """
    if end.rank is None or end.kind == "memory":
        return ""
    error = told.error(end.rank).read_text(errors="replace")
    if error:
        return error
    log = told.log(end.rank)
    if end.kind not in ("killed", "lost", "failed") or end.rank == 0 or not log.exists():
        return ""
    with log.open("rb") as f:
        f.seek(max(before.get(end.rank, 0), _size(log) - LAST_BYTES))
        lines = [plain(line).decode(errors="replace") for line in f.read().split(b"\n") if line.strip()][-LAST_LINES:]
    return f"rank {end.rank} said last:\n" + "".join(f"  {line}\n" for line in lines) if lines else ""


def log_sizes(told: Launched, ranks: int) -> dict[int, int]:
    """Bytes of each rank's log so far."""
    return {rank: _size(told.log(rank)) for rank in range(ranks)}


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def safe(checkpoint: str) -> str:
    """Which checkpoint of the run is kept, as text."""
    return (
        f"kept: the checkpoint {checkpoint}" if checkpoint else "kept: nothing, as no checkpoint was written; the run starts over"
    )


def _kept(folder: Path, now: Path, place: str, again: str) -> str:
    """Where the logs are, what is kept, and how to resume, also where the run folder was renamed and is at `now`."""
    if place == str(RunFolder(folder).own_checkpoints):
        place = str(RunFolder(now).own_checkpoints)
    text = f"logs of all ranks: {RunFolder(now).logs}\n{safe(newest(place))}\n"
    return f"{text}to resume: {after_renaming(again, folder, now)}"


def _give_up(end: Fault, why: str, kept: str, words: str, said: str) -> int:
    """Say what ended the run, once, what is kept and how to resume; the exit status.

    `words`: the error of the rank that failed; `said`: the one that was shown last.
    """
    if end.kind == "user":
        say(f"error: {end.text}")
    elif end.kind != "guard":  # rank 0 has explained the guard's stop
        memory = " (SIGKILL: out of host memory? see dmesg)" if end.kind == "killed" else ""
        text = f"error: {end}{memory}; giving up: {why}\n{kept}"
        say(f"{words if words != said else ''}{text}")
    return STATUS.get(end.kind, FAILED)
