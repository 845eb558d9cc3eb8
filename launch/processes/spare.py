"""The spare of this host: a process that has imported all that ranks import, of which those that start again are forks.

It is started once all ranks train, so that a start costs no more than without, and stays to the end of the run. What runs in it is
harness/tools/spare.py. Where it is not ready, or has ended, ranks start as they did at first.
"""

import json
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

from harness.supervision.fault_detection import RankStatus
from harness.supervision.launch_env import VARIABLE, Launched
from harness.supervision.output_redirect import say
from launch.processes.command import Command
from launch.processes.spawn import Child, Piped, start, start_piped

_RANKS = ("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "MASTER_PORT")
_AGENT = "TORCHELASTIC_"
"""Beginning of the names of variables by which torchrun's agent and its ranks know each other."""
Environ = dict[str, str]


@final
class Spare:
    """As a context manager it ends with the run. `wanted`: whether there is to be one; else it never is ready."""

    def __init__(self, command: Command, *, wanted: bool) -> None:
        self._command, self._wanted = command, wanted
        self._environs: list[Environ] = []
        self._process: Piped | None = None
        self._ready = False

    def __enter__(self) -> "Spare":
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is not None:
            self._process.end()

    @property
    def pids(self) -> list[int]:
        """Its process, which is none of a start's."""
        return [] if self._process is None else [self._process.pid]

    def follow(self, looks: Sequence[RankStatus], told: Launched) -> None:
        """Start it where all ranks train, in an environment like theirs."""
        if not self._wanted or self._process is not None or len(looks) < len(told.pulses):
            return
        if not all(look.beat and look.beat.warm and look.alive for look in looks):
            return
        try:
            self._environs = [_environ(look.beat.pid) for look in looks if look.beat]
        except OSError:  # one has just ended
            return
        shared = {name: value for name, value in self._environs[0].items() if name not in _RANKS}
        argv = (self._command.argv[0], "-m", "harness.tools.spare", *_arguments(self._command))
        self._process = start_piped(Command(argv, shared), Path(told.logs) / "launcher.log")

    def start(self, command: Command, told: Launched) -> "Ranks | None":
        """The ranks of `command`, told what `told` says; None where it cannot."""
        if not self._is_ready() or self._process is None:
            return None
        port = str(_free_port())
        argv = _arguments(command)
        environs = [_again(environ, told.environ(), port) for environ in self._environs]
        try:
            self._process.send(json.dumps({"argv": argv, "environs": environs}))
        except OSError:
            self._lose("ended")
            return None
        return Ranks(self._process)

    def _is_ready(self) -> bool:
        """Whether it waits for work; where it has ended it is forgotten, and another one is started with the next ranks."""
        if self._process is None:
            return False
        for line in self._process.lines():
            self._ready = self._ready or line == "ready"
            if line not in ("ready", "") and not line.startswith("ended "):
                say(f"note: restart.spares has no use here: {line}")
                self._wanted = False
        if self._process.poll() is not None:
            self._lose(f"ended with {self._process.poll()}")
            return False
        if not self._ready:
            say("note: the spare is not ready yet: the ranks start without it")
        return self._ready

    def _lose(self, how: str) -> None:
        if self._wanted:
            say(f"note: the spare {how}: the ranks start without it")
        if self._process is not None:
            self._process.end()
        self._process, self._ready = None, False


@final
class Ranks:
    """The ranks of a start that are forks of the spare, as the one process that starts them: `poll` and `wait` are Child's."""

    def __init__(self, spare: Piped) -> None:
        self._spare = spare
        self._status: int | None = None

    def poll(self) -> int | None:
        """The status of the first rank that did not end well, once all have ended; -9 where the spare is gone; None before."""
        if self._status is None:
            for line in self._spare.lines():
                if line.startswith("ended "):
                    self._status = int(line.removeprefix("ended "))
            if self._status is None and self._spare.poll() is not None:
                self._status = -signal.SIGKILL
        return self._status

    def wait(self) -> int:
        """Wait for the end of all."""
        while (status := self.poll()) is None:
            self._spare.wait_for_line()
        return status


def start_ranks(command: Command, told: Launched, spare: Spare) -> Child | Ranks:
    """All ranks of a start: by the spare, or by `command`."""
    return spare.start(command, told) or start(command, told.environ(), Path(told.logs) / "launcher.log")


def _arguments(command: Command) -> tuple[str, ...]:
    """What is handed to `python -m harness`, below whatever starts it."""
    return tuple(command.argv[command.argv.index("harness") + 1 :])


def _environ(pid: int) -> Environ:
    raw = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="surrogateescape")
    return dict(entry.partition("=")[::2] for entry in raw.split("\0") if entry)


def _again(before: Mapping[str, str], told: Mapping[str, str], port: str) -> Environ:
    """A rank's environment at the next start, at which no agent keeps the store."""
    kept = {name: value for name, value in before.items() if not name.startswith(_AGENT) and name != VARIABLE}
    return kept | dict(told) | ({"MASTER_PORT": port} if "MASTER_PORT" in before else {})


def _free_port() -> int:
    with socket.create_server(("localhost", 0)) as free:
        return int(free.getsockname()[1])
