"""Starting real ranks over gloo, for tests: one thread each."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tests.support.rank_server import RankServer, Request

ROOT = Path(__file__).parents[2]
LIMIT_S = 1800.0
"""What no wait of a test may take: far more than any takes, on however busy a machine."""


def environ() -> dict[str, str]:
    """The environment of a test's child: no GPU, one thread, no colours, the repository importable."""
    keep = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("WANDB_", "ACCELERATE_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_"))
    }
    return keep | {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "NO_COLOR": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
    }


@cache
def _server() -> RankServer:
    return RankServer(environ())


def run_ranks(
    ranks: int, argv: Sequence[str], cwd: Path, *, status: int = 0, limit_s: float = LIMIT_S, torchrun: bool = False
) -> str:
    """Run `python -m ARGV` on `ranks` ranks and return what they printed; fails unless the exit status is `status`.

    They are forked from a process that has imported torch; with `torchrun` each is an interpreter of its own, started by that.
    """
    if torchrun:
        several = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m", "--"]
        return run_command([sys.executable, *several, *argv], cwd, status=status, limit_s=limit_s)
    with tempfile.NamedTemporaryFile("r") as out, tempfile.NamedTemporaryFile("r") as err:
        request = Request(ranks, list(argv), str(cwd), environ(), out.name, err.name)
        ended = _server().run(request, limit_s)
        return _checked(argv, ended, status, out.read() + err.read())


def run_command(argv: Sequence[str], cwd: Path, *, status: int = 0, limit_s: float = LIMIT_S) -> str:
    """Run a command to its end and return its output; fails unless the exit status is `status`."""
    done = subprocess.run(argv, cwd=cwd, env=environ(), capture_output=True, text=True, timeout=limit_s, check=False)
    return _checked(argv, done.returncode, status, done.stdout + done.stderr)


def _checked(argv: Sequence[str], ended: int, status: int, output: str) -> str:
    errors = "\n".join([line for line in output.splitlines() if "Error" in line][:20])  # of ranks, the first to die tells why
    assert ended == status, f"{argv} ended with {ended}:\n{errors}\n...\n{output[-4000:]}"
    return output
