"""Optimizer state on disk (ZeRO-Infinity, Rajbhandari et al. 2021, 2104.07857): DeepSpeed moves it, a group at a time, as it steps.

Here it is fetched to be looked at and written back; and a folder is one run's at a time.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from harness.config.errors import UserError

_HELD: list[IO[str]] = []
"""The locks of this process, until its end."""


def claim(folder: str, rank: int) -> None:
    """Make sure that state can be kept in `folder`, and that this rank alone keeps its there. Raises UserError."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible(verbose=False):
        raise UserError("backend.nvme_path", "needs libaio, which is not installed", "install libaio-dev, or leave it out")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        lock = (Path(folder) / f"rank-{rank}.lock").open("w")
    except OSError as e:
        raise UserError("backend.nvme_path", f"cannot write to {folder}: {e.strerror}", "give a folder on a local disk") from e
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        raise UserError("backend.nvme_path", f"{folder} is in use by another run", "give each run a folder of its own") from e
    _HELD.append(lock)


@contextmanager
def in_memory(zero: Any, group: int, *, write: bool = False) -> Iterator[bool]:
    """Inside the context the float32 weights of DeepSpeed's `group` and their state are in memory; `write`: changes are written
    back.

    Yields whether they were read from disk for it.
    """
    if not (swaps(zero) and zero._swappable_optimizer_subgroup(group)):
        yield False
        return
    zero._optimizer_states_and_gradient_swap_in(group)
    try:
        yield True
    finally:
        (zero._optimizer_states_and_gradient_swap_out if write else zero._release_swap_buffers)(group)


def swaps(zero: Any) -> bool:
    """Whether DeepSpeed's optimizer keeps state on disk."""
    return bool(vars(zero).get("swap_optimizer"))
