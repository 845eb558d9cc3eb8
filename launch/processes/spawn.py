"""Starting processes on this machine, and what is on it. The one file that knows subprocess."""

import os
import re
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from types import FrameType
from typing import BinaryIO, final

from harness.config.errors import UserError
from harness.plan.rank_env import without_ranks
from harness.supervision.output_redirect import say
from harness.supervision.safe_files import append_log
from launch.processes.command import Command
from launch.processes.proc_table import GRACE_S, JOB

_GPU = re.compile(r"[0-9]+|(GPU|MIG)-[0-9A-Fa-f/-]+")
"""A GPU by its number or its UUID."""


def visible_gpus(visible: str) -> list[str]:
    """The GPUs that CUDA_VISIBLE_DEVICES names, as CUDA reads it: up to the first invalid entry; no GPU where one is listed
    twice."""
    found = list(takewhile(_GPU.fullmatch, (name.strip() for name in visible.split(","))))
    return found if len(set(found)) == len(found) else []


def gpu_count(visible: str | None) -> int:
    """GPUs of this machine: those CUDA_VISIBLE_DEVICES leaves (`visible`), else all that nvidia-smi lists."""
    if visible is not None:
        return len(visible_gpus(visible))
    try:
        out = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=20, check=False)  # noqa: S607
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return 0
    return len(out.stdout.splitlines()) if out.returncode == 0 else 0


def answer(argv: Sequence[str], setting: str, remedy: str) -> str:
    """What a short command says on standard output. Raises UserError if it is not there or fails."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603  argv is ours, no shell
    except (FileNotFoundError, subprocess.TimeoutExpired) as e:
        raise UserError(setting, f"{argv[0]}: {e}", remedy) from e
    if done.returncode:
        raise UserError(setting, f"{argv[0]} refused: {done.stderr.strip() or done.stdout.strip()}", remedy)
    return done.stdout.strip()


@contextmanager
def guarded() -> Iterator[dict[str, str]]:
    """The environment of child processes that are to end when this process is gone, even if it is killed."""
    mark = f"{os.getpid()}-{secrets.token_hex(8)}"
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    with subprocess.Popen(  # noqa: S603  our own module, by the interpreter that runs us
        [sys.executable, "-P", "-m", "launch.processes.guardian", mark],
        env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.PIPE,
        start_new_session=True,
    ) as guardian:
        try:
            yield {JOB: mark}
        finally:
            guardian.kill()


def output(command: Command, limit_s: float) -> str:
    """Run a command and return everything it printed; what takes longer than `limit_s` is killed with all it started."""
    with (
        guarded() as mark,
        subprocess.Popen(  # noqa: S603  argv is ours, no shell
            command.argv,
            env=without_ranks(os.environ) | dict(command.environ) | mark,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as child,
    ):
        try:
            return child.communicate(timeout=limit_s)[0]
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            return f"Error: no end within {limit_s:.0f} s"


def _wait_for_group(group: int) -> None:
    """Wait for workers whose launcher has gone before them (accelerate with one process dies of SIGTERM at once); kill the late."""
    deadline = time.monotonic() + GRACE_S
    while True:
        try:
            os.killpg(group, 0 if time.monotonic() < deadline else signal.SIGKILL)
        except ProcessLookupError:
            return
        time.sleep(0.05)


def run(command: Command) -> int:
    """Run to the end in a process group of its own; SIGINT, SIGTERM and SIGUSR1 are passed on to the workers in it.

    Returns the exit status; a process that died of signal n gives 128 + n. The launcher in between ignores SIGUSR1, which would
    otherwise kill it and orphan the workers.
    """
    with guarded() as mark:
        return _run(command, mark)


def _run(command: Command, mark: Mapping[str, str]) -> int:
    ignored = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    child = subprocess.Popen(  # noqa: S603  argv is ours, no shell
        command.argv, env=without_ranks(os.environ) | dict(command.environ) | dict(mark), start_new_session=True
    )
    signal.signal(signal.SIGUSR1, ignored)

    def forward(number: int, frame: FrameType | None) -> None:
        try:
            os.killpg(child.pid, number)
        except ProcessLookupError:
            return

    before = {n: signal.signal(n, forward) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        status = child.wait()
        _wait_for_group(child.pid)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return status if status >= 0 else 128 - status


@final
class Child:
    """A process that was started."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    def poll(self) -> int | None:
        """The exit status, -n where signal n ended the process; None while it runs."""
        return self._process.poll()

    def wait(self) -> int:
        """Wait for the end; the exit status as `poll` gives it."""
        return self._process.wait()

    def signal(self, number: int) -> None:
        """Send it a signal, if it is still there."""
        self._process.send_signal(number)


@final
class Piped:
    """A process that takes lines on its standard input, and answers in lines on its standard output."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        assert process.stdin is not None  # noqa: S101  both are pipes
        assert process.stdout is not None  # noqa: S101
        self.pid, self._input, self._output = process.pid, process.stdin, process.stdout
        os.set_blocking(self._output.fileno(), False)
        self._part = b""

    def poll(self) -> int | None:
        """As Child's."""
        return self._process.poll()

    def send(self, line: str) -> None:
        """Give it a line. Raises OSError where it is gone."""
        self._input.write(f"{line}\n".encode())
        self._input.flush()

    def lines(self) -> list[str]:
        """What it has answered since the last call."""
        while chunk := self._read():
            self._part += chunk
        *whole, self._part = self._part.split(b"\n")
        return [line.decode() for line in whole]

    def wait_for_line(self) -> None:
        """Wait until it answers, or is gone."""
        select.select([self._output], [], [])

    def end(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        with suppress(OSError):  # what was not sent
            self._input.close()
        self._output.close()

    def _read(self) -> bytes:
        try:
            return os.read(self._output.fileno(), 4096)
        except BlockingIOError:
            return b""


def _log(path: Path) -> BinaryIO:
    """A log to append to; if the disk is full or the folder is gone, a warning says so and the output is lost."""
    try:
        return append_log(path)
    except OSError as e:
        say(f"warn   {path} is not written ({e.strerror})")
        return Path(os.devnull).open("ab")


def start(command: Command, environ: Mapping[str, str], log: Path) -> Child:
    """Start a command in a session of its own, its own output appended to `log`.

    It ignores SIGUSR1, which would kill the launching process between us and the ranks; the ranks hear it.
    """
    return Child(_start(command, environ, log, subprocess.DEVNULL, None))


def start_piped(command: Command, log: Path) -> Piped:
    """As `start`, for a process that is told what to do by lines. Its environment is that of the command, and nothing else."""
    return Piped(_start(command, None, log, subprocess.PIPE, subprocess.PIPE))


def _start(
    command: Command, environ: Mapping[str, str] | None, log: Path, stdin: int, stdout: int | None
) -> "subprocess.Popen[bytes]":
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    whole = dict(command.environ) if environ is None else without_ranks(os.environ) | dict(command.environ) | dict(environ)
    with _log(log) as words:
        process = subprocess.Popen(  # noqa: S603  argv is ours, no shell
            command.argv, env=whole, start_new_session=True, stdin=stdin, stdout=stdout or words, stderr=words
        )
    signal.signal(signal.SIGUSR1, before)
    return process
