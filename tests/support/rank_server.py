"""Ranks as torchrun starts them, without an interpreter's start each: forked from a process that has imported torch once.

A rank that is forked runs the same program as `python -m` would, in the folder and the environment that torchrun gives it, and
meets the others at a store as torchrun's. What the start itself is about is tested with the real launchers: test_resume,
test_launch, test_tools.

`python -m tests.support.rank_server` reads a request as a line of JSON from stdin, and answers with the exit status as a line.
"""

import atexit
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MODULES = ("numpy", "torch", "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor", "accelerate")
"""What most ranks import, and what takes the time of their start; nothing of ours."""
END_S = 30.0
"""What ranks whose peer has failed have for their end, as with torchrun."""


@dataclass(frozen=True)
class Request:
    """One launch: so many ranks of `python -m ARGV`, in a folder; their output goes to two files."""

    ranks: int
    argv: list[str]
    cwd: str
    environ: dict[str, str]
    out: str
    err: str


class RankServer:
    """The process that forks ranks for this one; it ends with it."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        argv = [sys.executable, "-m", "tests.support.rank_server"]
        self._process = subprocess.Popen(argv, env=dict(environ), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        atexit.register(self._process.communicate)

    def run(self, request: Request, limit_s: float) -> int:
        """The exit status of a launch. Raises AssertionError where it takes longer than the limit, or the server is gone."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(request)) + "\n")
        self._process.stdin.flush()
        late = threading.Timer(limit_s, self._process.terminate)
        late.start()
        answer = self._process.stdout.readline()
        late.cancel()
        assert answer, f"{request.argv} took longer than {limit_s:.0f} s, or the server of ranks died"
        return int(answer)


def serve() -> None:
    """Answer requests until stdin ends. Returns in each process that it forked as a rank, after that rank's program."""
    for name in MODULES:
        importlib.import_module(name)
    threads = list(Path("/proc/self/task").iterdir())
    assert len(threads) == 1, "a process of several threads cannot be forked safely"
    while line := _read_line(0):
        request = Request(**json.loads(line))
        launcher = os.fork()
        if not launcher:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.setsid()
            _redirect(request)
            return _run(request.argv, {}) if request.ranks == 1 else _launch(request)
        signal.signal(signal.SIGTERM, lambda *_, all_of_it=launcher: _stop(all_of_it))
        _, status = os.waitpid(launcher, 0)
        os.write(1, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    return None


def _stop(launch: int) -> None:
    """It takes too long: end all of it, and this."""
    os.killpg(launch, signal.SIGKILL)
    os._exit(1)


def _read_line(descriptor: int) -> bytes:
    """A line, read without a buffer that forked processes would share."""
    line = b""
    while not line.endswith(b"\n") and (part := os.read(descriptor, 1 << 16)):
        line += part
    return line


def _redirect(request: Request) -> None:
    os.chdir(request.cwd)
    os.environ.clear()
    os.environ.update(request.environ)
    for descriptor, name in enumerate((os.devnull, request.out, request.err)):
        opened = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)


def _launch(request: Request) -> None:
    """Be torchrun: start the ranks and wait for them; where one fails, end the others, and fail."""
    port, store = _store()
    ranks: dict[int, int] = {}
    for rank in range(request.ranks):
        pid = os.fork()
        if not pid:
            return _run(request.argv, _environ(rank, request.ranks, port))
        ranks[pid] = rank
    failed = False
    while ranks:
        pid, status = os.wait()
        if pid == store:
            continue
        rank = ranks.pop(pid)
        if status:
            print(f"rank {rank} ended with {os.waitstatus_to_exitcode(status)}", file=sys.stderr, flush=True)
        if status and not failed:
            failed = True
            _end(list(ranks))
    os.kill(store, signal.SIGKILL)
    os._exit(int(failed))


def _end(ranks: Sequence[int]) -> None:
    for pid in ranks:
        os.kill(pid, signal.SIGTERM)

    def kill(*_: Any) -> None:
        for pid in ranks:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    signal.signal(signal.SIGALRM, kill)
    signal.setitimer(signal.ITIMER_REAL, END_S)


def _store() -> tuple[int, int]:
    """(port, process) of the store where the ranks meet: a process of its own, as it has threads."""
    mine, its = os.pipe()
    pid = os.fork()
    if not pid:
        import torch.distributed as dist

        store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
        os.write(its, f"{store.port}\n".encode())
        signal.pause()
    os.close(its)
    port = int(_read_line(mine))
    os.close(mine)
    return port, pid


def _environ(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What torchrun tells a rank."""
    one = {"RANK": rank, "LOCAL_RANK": rank, "ROLE_RANK": rank, "GROUP_RANK": 0, "GROUP_WORLD_SIZE": 1, "ROLE_NAME": "default"}
    all_of_them = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "ROLE_WORLD_SIZE": ranks}
    agent = {"RESTART_COUNT": 0, "MAX_RESTARTS": 0, "RUN_ID": f"forked-{os.getpid()}", "USE_AGENT_STORE": True}
    meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "TORCH_NCCL_ASYNC_ERROR_HANDLING": 1}
    found = one | all_of_them | meeting | {f"TORCHELASTIC_{name}": value for name, value in agent.items()}
    return {name: str(value) for name, value in found.items()}


def _run(argv: Sequence[str], environ: Mapping[str, str]) -> None:
    """Be `python -m ARGV`."""
    import numpy as np

    np.random.seed(None)  # a process of its own would have a seed of its own
    os.environ.update(environ)
    sys.argv, sys.path[0] = list(argv), str(Path.cwd())
    runpy.run_module(argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    serve()
