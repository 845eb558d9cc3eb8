"""The default process group: made so that it can be cut off at once, and made again of other ranks in the same processes."""

import os
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d


@dataclass(frozen=True)
class _Group:
    """How the group was made. `sockets`: (descriptor, inode) of those that were opened for it in this process."""

    backend: str
    store: Any
    sockets: frozenset[tuple[int, int]]


_made: list[_Group] = []
"""The newest last. torch holds the default group in a variable of its module, too."""


def make_group(backend: str, store: Any, rank: int, size: int, timeout: timedelta) -> None:
    """Make the default process group over a store."""
    before = _sockets()
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    _made.append(_Group(backend, store, _sockets() - before))


def cut_off() -> None:
    """Fail every collective of the group that this process is in or enters, and those of its peers that wait for it. Any thread.

    gloo has no abort (torch 2.13): a rank whose own connections are well would wait until the timeout for one that has given up.
    So its connections are shut.
    """
    if _made[-1].backend == "nccl":
        c10d._get_default_group().abort()
        return
    for handle, inode in _made[-1].sockets:
        with suppress(OSError):  # closed meanwhile, or a socket that listens: gloo ends the process where that is shut
            if os.fstat(handle).st_ino == inode:
                with socket.socket(fileno=os.dup(handle)) as connection:
                    connection.getpeername()
                    connection.shutdown(socket.SHUT_RDWR)


def make_again(name: str, rank: int, size: int, timeout: timedelta) -> None:
    """Leave the group, and make another over its first store, under a `name` that is new. Raises RuntimeError."""
    first = _made[0]
    if dist.is_initialized():
        dist.destroy_process_group()
    make_group(first.backend, dist.PrefixStore(name, first.store), rank, size, timeout)  # type: ignore[attr-defined]


def base_store() -> Any:
    """The store that the first group was made over."""
    return _made[0].store


def _sockets() -> frozenset[tuple[int, int]]:
    """(descriptor, inode) of this process's sockets."""
    found = set[tuple[int, int]]()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            handle = int(entry.name)
            status = os.fstat(handle)
            if stat.S_ISSOCK(status.st_mode):
                found.add((handle, status.st_ino))
    return frozenset(found)
