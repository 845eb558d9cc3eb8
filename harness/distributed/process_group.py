"""This process among its peers: joining the group, agreeing on a text, leaving."""

import gc
import json
import os
import re
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
from accelerate import PartialState
from accelerate.state import AcceleratorState

from harness.config.errors import UserError
from harness.distributed.group import make_again
from harness.distributed.network_interface import VARIABLE, interface
from harness.distributed.rendezvous import meet

T = TypeVar("T")
_OUT_OF_MEMORY = re.compile(
    r"(CUDA|HIP)( driver| runtime)? (error|failure)[^\n]{0,40}\bout of memory"  # CUDA's runtime and driver; NCCL quotes them
    r"|(CUDA|HIP) out of memory|^out of memory \(2\)|CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation"
    r"|\bCU[A-Z]+_(STATUS_)?(INTERNAL_ERROR_)?([A-Z]+_)?ALLOC(ATION)?_FAILED"  # cuBLAS, cuDNN, cuSOLVER, cuSPARSE, cuFFT
    r"|Failed to CUDA \w*alloc|DefaultCPUAllocator: ",  # NCCL; torch on the host
    re.IGNORECASE,
)
LIMIT_S = 600.0
"""How long the ranks may take to come together, and to take part in what they do together."""


def join(cpu: bool, limit_s: float = LIMIT_S, stop: Callable[[], bool] = lambda: False) -> torch.device:
    """Join the process group that the launcher's environment describes, over gloo or NCCL; alone, join nothing.

    Returns this process's device, which is torch's current one from here on. A collective that takes longer than `limit_s` seconds
    is an error, and not a wait for ever. Raises UserError, and StoppedError where a `stop` was asked for before all ranks were
    there.
    """
    if not cpu:  # data workers are forked after InfiniBand has registered memory, whose pages must stay this process's
        os.environ.setdefault("RDMAV_FORK_SAFE", "1")
    named = interface(os.environ, cpu=cpu)
    if named is not None:
        os.environ[VARIABLE] = named
    meet("gloo" if cpu else "nccl", limit_s, stop)
    device: torch.device = PartialState(cpu=cpu, timeout=timedelta(seconds=limit_s)).device
    return device


def join_again(name: str, rank: int, size: int, limit_s: float) -> None:
    """Leave the group, and be `rank` in another one of `size`, which meets by a `name` that is new. Raises RuntimeError."""
    make_again(name, rank, size, timedelta(seconds=limit_s))
    known = PartialState()
    known.num_processes, known.process_index = size, rank
    AcceleratorState._reset_state()  # it keeps a copy of rank and size


def set_limit(limit_s: float) -> None:
    """From here on a collective of any group may take so many seconds."""
    if dist.is_initialized():
        for group in list(c10d._world.pg_map):
            c10d._set_pg_timeout(timedelta(seconds=limit_s), group)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was no memory left, on a device or on the host.

    Only torch's allocator has an error of its own for it. CUDA, its libraries and NCCL take memory past the allocator, and say so
    in a RuntimeError.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None


def agree(text: str) -> str:
    """Rank 0's text, on every rank."""
    if not dist.is_initialized():
        return text
    box = [text]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def on_rank_0(action: Callable[[], T]) -> T | None:
    """What `action` returns, on rank 0; None on all others. A UserError that it raises is raised on every rank."""
    result, problem = None, list[str]()
    if peers()[0] == 0:
        try:
            result = action()
        except UserError as e:
            problem = [e.setting, e.problem, e.remedy]
    problem = json.loads(agree(json.dumps(problem)))
    if problem:
        raise UserError(*problem)
    return result


def first_here_first(build: Callable[[], T], limit_s: float) -> T:
    """The result of `build`, called on rank 0 first, then on the first rank of every other host, then on all others.

    A library's cache on disk is so made once, and read by all others. Raises UserError if that takes longer than `limit_s`
    seconds, the limit of a collective.
    """
    if not dist.is_initialized():
        return build()
    turn = 0 if dist.get_rank() == 0 else 1 if PartialState().local_process_index == 0 else 2
    for now in range(turn):
        _wait_turn(now, limit_s)
    try:
        return build()
    finally:  # also where it fails: the others then meet the same
        for now in range(turn, 2):
            _wait_turn(now, limit_s)


def _wait_turn(turn: int, limit_s: float) -> None:
    try:
        agree("")
    except RuntimeError as e:
        if "imed out" not in str(e):
            raise
        who = "the first rank of another host" if turn else "rank 0"
        at = f"is {limit_s:g}, and {who} has not finished the recipe's data()"
        raise UserError("restart.start_s", at, "raise it, or prepare the data before the run") from e


def peers() -> tuple[int, int]:
    """(this process's rank, number of ranks)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gather(thing: T) -> list[T]:
    """Every rank's `thing`, in the order of ranks, on every rank. `thing` is plain data."""
    if not dist.is_initialized():
        return [thing]
    box: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(box, thing)
    return box


def collect(thing: T) -> list[T] | None:
    """Every rank's `thing`, in the order of ranks, on rank 0; None on all others. `thing` is plain data or tensors of the host."""
    if not dist.is_initialized():
        return [thing]
    box: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(thing, box, dst=0)
    return box


def let_gloo_finish() -> None:
    """Release the interpreter lock, so that gloo's threads can drop the tensors of the last collectives.

    A thread that waits for the lock when Python shuts down aborts the process ("terminate called without an active
    exception"). Measured with four ranks of torch's own DDP on two loaded cores: 8 of 12 launches, and none of 12 after one such
    wait.
    """
    for _ in range(3):
        time.sleep(0.01)


def leave() -> None:
    """Leave the process group. DDP objects sit in reference cycles and hold it, so they are collected first."""
    if dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()
