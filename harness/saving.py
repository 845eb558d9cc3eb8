"""One checkpoint of a run by all its ranks: each writes what it holds, rank 0 commits; whether it worked is agreed at each step."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from harness.engine import checkpoint
from harness.engine.engine import Engine
from harness.engine.process import gather
from harness.engine.state import State

T = TypeVar("T")


class NotSavedError(Exception):
    """A rank could not write, so no rank has saved; the text says which and why. Older checkpoints are as they were."""


def save(engine: Engine, folder: Path, state: State, about: Mapping[str, Any], keep: int) -> Path:
    """Write and commit a checkpoint into `folder`; its path. Raises NotSavedError, on every rank alike."""
    first = engine.rank == 0
    engine.sync_buffers()
    temporary = _each(engine, lambda: checkpoint.prepare(folder, state) if first else folder)[0]
    parts = _each(engine, lambda: checkpoint.write_part(temporary, engine.rank, engine.processes, engine.pieces()))
    digests = {name: digest for part in parts for name, digest in part.items()}
    return _each(engine, lambda: checkpoint.commit(folder, state, about, digests, keep) if first else folder)[0]


def _each(engine: Engine, action: Callable[[], T]) -> list[T]:
    """Do something on every rank that may fail to write; what each got, in the order of ranks."""
    try:
        done: tuple[T | None, str] = action(), ""
    except OSError as e:
        done = None, f"rank {engine.rank}: {e}"
    told = gather(done)
    problem = next((p for _, p in told if p), "")
    if problem:
        raise NotSavedError(problem)
    return [thing for thing, _ in told if thing is not None]
