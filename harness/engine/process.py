"""This process among its peers: joining the group, agreeing on a text, leaving."""

import gc
import os
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState

from harness.engine.network import VARIABLE, interface
from harness.engine.rendezvous import meet

T = TypeVar("T")
LIMIT_S = 600.0
"""How long the ranks may take to come together, and to take part in what they do together."""


def use_cpu(wished: bool) -> bool:
    """Whether this process computes on the CPU: because that was asked for, or because there is no GPU."""
    return wished or not torch.cuda.is_available()


def join(cpu: bool) -> None:
    """Join the process group that the launcher's environment describes, over gloo or NCCL; alone, do nothing. Raises UserError."""
    named = interface(os.environ, cpu=cpu)
    if named is not None:
        os.environ[VARIABLE] = named
    meet("gloo" if cpu else "nccl", LIMIT_S)
    PartialState(cpu=cpu)


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
