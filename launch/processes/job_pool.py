"""Many processes of this machine at a time, each with its output in a file of its own."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from harness.plan.rank_env import without_ranks
from harness.supervision.safe_files import make_inside
from launch.processes.command import Command
from launch.processes.spawn import guarded

POLL_S = 0.05
LAST_BYTES = 1 << 16
"""How many bytes at the end of a log are searched for its last line."""


@dataclass(frozen=True)
class Job:
    """A process to run, and the file that takes what it prints."""

    name: str
    command: Command
    log: Path


def last_line(log: Path) -> str:
    """The last line that a job printed, however much it did."""
    with log.open("rb") as file:
        file.seek(max(log.stat().st_size - LAST_BYTES, 0))
        return (file.read().decode(errors="replace").strip().splitlines() or ["no output"])[-1]


@dataclass
class _Running:
    job: Job
    place: int
    process: subprocess.Popen[bytes]


def run_jobs(
    jobs: Iterable[Job],
    at_once: int,
    ended: Callable[[Job, int], bool],
    places: Callable[[int], Mapping[str, str]] = lambda place: {},
) -> bool:
    """Run the jobs, `at_once` of them at a time, in order. Whether all were run.

    `ended(job, status)` is called at each end; when it returns False, no other job starts. `places(n)` gives the environment of the
    n-th place, from 0. SIGINT and SIGTERM are passed on, so that the running ones can save, and then nothing starts any more. Where
    this process is killed they are asked to stop, too.
    """
    waiting, running, going = list(jobs), list[_Running](), True

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal going
        going = False
        for one in running:
            _signal(one.process, signal.SIGTERM)

    before = {n: signal.signal(n, forward) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        with guarded() as mark:
            while running or (waiting and going):
                while waiting and going and len(running) < at_once:
                    place = min(set(range(at_once)) - {one.place for one in running})
                    running.append(_Running(waiting[0], place, _start(waiting.pop(0), places(place), mark)))
                for one in [r for r in running if r.process.poll() is not None]:
                    running.remove(one)
                    going = ended(one.job, _status(one.process.returncode)) and going
                time.sleep(POLL_S)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for one in running:
            _signal(one.process, signal.SIGKILL)
    return not waiting


def _start(job: Job, place: Mapping[str, str], mark: Mapping[str, str]) -> subprocess.Popen[bytes]:
    make_inside(job.log.parent, "--out")
    environ = without_ranks(os.environ) | dict(place) | dict(job.command.environ) | dict(mark)
    job.log.unlink(missing_ok=True)
    with job.log.open("xb") as log:  # only a new file, so that no link is followed
        return subprocess.Popen(  # noqa: S603  argv is ours, no shell
            job.command.argv, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def _signal(process: "subprocess.Popen[bytes]", number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


def _status(returned: int) -> int:
    return returned if returned >= 0 else 128 - returned
