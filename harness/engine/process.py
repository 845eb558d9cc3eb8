"""This process among its peers: joining the group, agreeing on a text, leaving."""

import gc
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
from accelerate import PartialState

from harness.engine.network import VARIABLE, interface
from harness.engine.rendezvous import meet

T = TypeVar("T")
LIMIT_S = 600.0
"""How long the ranks may take to come together, and to take part in what they do together."""


def use_cpu(wished: bool) -> bool:
    """Whether this process computes on the CPU: because that was asked for, or because there is no GPU."""
    return wished or not torch.cuda.is_available()


def join(cpu: bool, limit_s: float = LIMIT_S, stop: Callable[[], bool] = lambda: False) -> None:
    """Join the process group that the launcher's environment describes, over gloo or NCCL; alone, do nothing. Raises UserError.

    A collective that takes longer than `limit_s` seconds is an error, and not a wait for ever. Raises StoppedError where a
    `stop` was asked for before all ranks were there.
    """
    named = interface(os.environ, cpu=cpu)
    if named is not None:
        os.environ[VARIABLE] = named
    meet("gloo" if cpu else "nccl", limit_s, stop)
    PartialState(cpu=cpu, timeout=timedelta(seconds=limit_s))


def set_limit(limit_s: float) -> None:
    """From here on a collective of any group may take so many seconds."""
    if dist.is_initialized():
        for group in list(c10d._world.pg_map):
            c10d._set_pg_timeout(timedelta(seconds=limit_s), group)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was no memory left, on a device or on the host."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator: " in str(error)


def agree(text: str) -> str:
    """Rank 0's text, on every rank."""
    if not dist.is_initialized():
        return text
    box = [text]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def peers() -> tuple[int, int]:
    """(this process's rank, number of ranks)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gather(thing: T) -> list[T]:
    """What each rank gave, in the order of ranks, on every rank. `thing` is plain data."""
    if not dist.is_initialized():
        return [thing]
    box: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(box, thing)
    return box


def leave() -> None:
    """Leave the process group.

    DDP objects sit in reference cycles and hold the group: freed as late as the interpreter's end, gloo's threads may abort the
    process (measured: about one exit in five on two loaded cores). So they are collected first.
    """
    if dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()
