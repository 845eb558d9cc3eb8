"""A short text that changes when the training data do: their length, and a hash of evenly spaced rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from harness.parts.data import Data, Table
from harness.parts.fetch import MapStyle, Pool, Task, fetch
from harness.parts.recipe import Recipe
from harness.plan.config import DataConfig

ROWS, FETCHED = 256, 16
"""Rows that are looked at: of a table, and of a data set whose rows must be fetched one by one, perhaps decoded."""
UNREADABLE = "unreadable"


def fingerprint(recipe: Recipe, data: Data) -> str:
    """`LENGTH:HASH`, or the recipe's own text. `LENGTH:random` where a row is another each time it is fetched."""
    own = recipe.fingerprint()
    if own is not None:
        return own
    if isinstance(data, Table):
        rows = torch.from_numpy(_spaced(len(data), ROWS))
        return f"{len(data)}:{_hash(data.take(rows))}"
    found = [_fetched(recipe, data, seed) for seed in range(2)]
    return f"{len(data)}:{_hash(found[0]) if found[0] == found[1] else 'random'}"


def _fetched(recipe: Recipe, data: MapStyle, seed: int) -> list[str]:
    """Hashes of some rows, by a worker process where the recipe has such: a row that cannot be read is a row like others here."""
    tasks = [Task((int(i),), seed, collate=False) for i in _spaced(len(data), FETCHED)]
    if not recipe.workers:
        return [_hash(found.batch or UNREADABLE) for found in (fetch(data, recipe.collate, task) for task in tasks)]
    pool = Pool(data, recipe.collate, 1, DataConfig().timeout_s, lambda text: None)
    try:
        return [_hash(found.batch or UNREADABLE) for _, found in pool.ahead(tasks)]
    finally:
        pool.close()


def _spaced(length: int, rows: int) -> Any:
    """At most `rows` indices from the first to the last: int64 [n]."""
    return np.unique(np.linspace(0, length - 1, min(rows, length)).astype(np.int64))


def _hash(row: Any) -> str:
    state = xxhash.xxh3_128()
    _add(state, row)
    return state.hexdigest()


def _add(state: Any, part: Any) -> None:
    """Hash a row's values with their types and shapes. Of a type that is not known only the name counts."""
    state.update(type(part).__name__.encode())
    if isinstance(part, Tensor):
        state.update(f"{part.dtype}{tuple(part.shape)}".encode())
        state.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(part, np.ndarray):
        state.update(f"{part.dtype}{part.shape}".encode())
        state.update(np.ascontiguousarray(part).tobytes())
    elif isinstance(part, Mapping):
        for name, value in part.items():
            state.update(str(name).encode())
            _add(state, value)
    elif isinstance(part, str | bytes | int | float | None):
        state.update(repr(part).encode())
    elif isinstance(part, Sequence):
        for value in part:
            _add(state, value)
