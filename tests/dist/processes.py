"""Starting real ranks over gloo, for tests: torchrun, one thread each."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environ() -> dict[str, str]:
    """The environment of a test's child: no GPU, one thread, no colours, the repository importable."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "ACCELERATE_", "RANK", "WORLD_SIZE"))}
    return keep | {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "NO_COLOR": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
    }


def run_ranks(ranks: int, argv: Sequence[str], cwd: Path, *, status: int = 0, limit_s: float = 300) -> str:
    """Run `python -m ARGV` on `ranks` ranks and return what they printed; fails unless the exit status is `status`."""
    start = [sys.executable]
    if ranks > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return run_command([*start, "-m", *argv], cwd, status=status, limit_s=limit_s)


def run_command(argv: Sequence[str], cwd: Path, *, status: int = 0, limit_s: float = 300) -> str:
    """Run a command to its end and return its output; fails unless the exit status is `status`."""
    done = subprocess.run(argv, cwd=cwd, env=environ(), capture_output=True, text=True, timeout=limit_s, check=False)
    output = done.stdout + done.stderr
    errors = "\n".join([line for line in output.splitlines() if "Error" in line][:20])  # of ranks, the first to die tells why
    assert done.returncode == status, f"{argv} ended with {done.returncode}:\n{errors}\n...\n{output[-4000:]}"
    return output
