"""One rank of `widebatch doctor`: what torch, DeepSpeed and W&B find here, and how fast sums go over all ranks.

`widebatch doctor` starts the ranks of this machine. For several hosts start it with the tool you know and read rank 0:
`torchrun --nnodes 2 ... -m harness.tools.rank_checks`, or `srun python -m harness.tools.rank_checks`.
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from harness.config.errors import UserError
from harness.distributed.network_interface import listening
from harness.distributed.process_group import join, leave
from harness.engine.deepspeed_build import cache_folder, stale_locks
from harness.plan.rank_env import settle
from harness.plan.world import cpu_requested
from harness.supervision.exit_codes import run_rank
from harness.supervision.output_redirect import echo, say
from harness.watch.wandb import has_key, unreachable

SIZES = (8, 1 << 10, 1 << 16, 1 << 20, 1 << 24, 1 << 26)
"""Bytes of the all-reduces: from a flag to the gradients of 16 million float32 weights."""
WANDB_S = 3.0


def main(argv: Sequence[str]) -> int:
    """Measure; rank 0 writes one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m harness.tools.rank_checks", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="where rank 0 writes what it found (default: standard output)")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long the all-reduces may take together")
    args = parser.parse_args(argv)
    try:
        here = settle(os.environ)
    except UserError as e:
        say(f"error: {e}")
        return 2
    cpu = cpu_requested(os.environ) or not torch.cuda.is_available()  # a GPU that cannot be used is a finding
    join(cpu)
    facts = found(cpu) if here.rank == 0 else {}
    facts |= measured(torch.device("cpu") if cpu else torch.device("cuda", here.local_rank), args.seconds)
    facts |= {"ranks": here.size, "nodes": here.nodes}
    if here.rank == 0 and here.size > 1:
        facts |= {"ranks_listen": listening([os.getpid()]), "launcher_listens": listening([os.getppid()])}
    leave()
    if here.rank == 0:
        if args.out:
            args.out.write_text(json.dumps(facts))
        else:
            echo(json.dumps(facts, indent=1))
    return 0


def found(cpu: bool) -> dict[str, Any]:
    """Facts of this process's host."""
    seen = [] if cpu else [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if dist.is_nccl_available() and torch.cuda.is_available() else None  # type: ignore[no-untyped-call]
    folder = cache_folder()
    return {
        "gpus": seen,
        "cuda": torch.version.cuda,
        "nccl": nccl,
        "gloo": dist.is_gloo_available(),
        "operators_built": any(folder.glob("*/*.so")),
        "stale_locks": [str(path) for path in stale_locks(folder)],
        "compiler": shutil.which("c++") is not None or shutil.which("g++") is not None,
        "wandb_problem": unreachable(WANDB_S),
        "wandb_key": has_key(),
    }


def measured(device: torch.device, limit_s: float) -> dict[str, Any]:
    """Clocks and sums over all ranks. `right`: every sum was what it must be."""
    if not dist.is_initialized():
        return {"clock_spread_s": 0.0, "laps": [], "right": True}
    dist.barrier()
    now = time.time()
    spread = highest(now, device) + highest(-now, device)
    laps = [[size, *lap(size, device, limit_s / len(SIZES))] for size in SIZES]
    return {"clock_spread_s": spread, "laps": [row[:2] for row in laps], "right": all(row[2] for row in laps)}


def lap(size: int, device: torch.device, limit_s: float) -> tuple[float, bool]:
    """(seconds of one all-reduce of `size` bytes on the slowest rank, whether the sum is right), as many as `limit_s` allows."""
    ranks, rank = dist.get_world_size(), dist.get_rank()
    data = torch.ones(size // 4, device=device)
    once = highest(timed(data, 2), device)  # the first ones set up what the next ones use; all ranks agree on how many follow
    seconds = highest(timed(data, max(min(int(limit_s / 2 / once), 1000), 2)), device)
    data.fill_(1 + rank % 3)
    dist.all_reduce(data)
    wrong = bool((data != sum(1 + n % 3 for n in range(ranks))).any())
    return seconds, highest(float(wrong), device) == 0


def highest(value: float, device: torch.device) -> float:
    """The largest of all ranks' values."""
    box = torch.tensor([value], dtype=torch.float64, device=device)
    dist.all_reduce(box, dist.ReduceOp.MAX)
    return float(box.item())


def timed(data: torch.Tensor, times: int) -> float:
    """Seconds of one of `times` all-reduces in a row."""
    dist.barrier()
    begin = time.perf_counter()
    for _ in range(times):
        dist.all_reduce(data, dist.ReduceOp.MAX)
    if data.is_cuda:
        torch.cuda.synchronize(data.device)
    return (time.perf_counter() - begin) / times


if __name__ == "__main__":
    run_rank(main)
