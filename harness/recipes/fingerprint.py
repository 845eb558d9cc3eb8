"""A short text that changes when the training data do: their length, and a hash of evenly spaced rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from harness.config.schema import DataConfig
from harness.data.batch_tree import open_up
from harness.data.columns import Columns
from harness.data.feed import Data
from harness.data.joined import Joined
from harness.data.mixed_order import shares
from harness.data.workers import Pool, Reader, Task
from harness.recipes.base import Recipe

ROWS, FETCHED = 256, 16
"""How many rows are hashed: of a table, and of a data set whose rows must be fetched one by one, perhaps decoded."""
UNREADABLE = "unreadable"


def fingerprint(recipe: Recipe, data: Data) -> str:
    """`LENGTH:HASH`, or the recipe's or the data's own text. `LENGTH:random` where a row differs each time it is fetched."""
    own = recipe.fingerprint()
    if own is None and isinstance(data, Columns):
        own = data.fingerprint()
    if own is not None:
        return own
    if isinstance(data, Joined):
        parts = [(name, fingerprint(recipe, one)) for name, one in data.sets.items()]
        then = [[at, shares(weights)] for at, weights in data.then]
        mixed = [parts, shares(data.weights) if data.weights else [], *([then] if then else [])]
        return f"{len(data)}:{row_digest(mixed, whole=False)}"
    if isinstance(data, Columns):
        return f"{len(data)}:{row_digest(data.take(spaced(len(data), ROWS)), whole=False)}"
    numbers = spaced(len(data), FETCHED).tolist()
    first, second = ([row_digest(row, whole=False) for row in read(recipe, data, numbers, seed)] for seed in range(2))
    return f"{len(data)}:{row_digest(first, whole=False) if first == second else 'random'}"


def read(recipe: Recipe, data: Data, numbers: Sequence[int], seed: int) -> list[Any]:
    """Some rows, by a worker process where the recipe has such; one that cannot be read is UNREADABLE."""
    if isinstance(data, Columns):
        columns = data.take(torch.tensor(numbers, dtype=torch.int64))
        return [{name: column[place] for name, column in columns.items()} for place in range(len(numbers))]
    tasks = [Task((int(i),), seed, int(i), collate=False) for i in numbers]
    if not recipe.workers:
        return [found.batch or UNREADABLE for found in map(Reader(data, recipe.collate).fetch, tasks)]
    pool = Pool(data, recipe.collate, 1, DataConfig().timeout_s, lambda text: None)
    try:
        return [found.batch or UNREADABLE for _, found in pool.ahead(tasks)]
    finally:
        pool.close()


def spaced(length: int, rows: int) -> Tensor:
    """At most `rows` indices from the first to the last: int64 [n]."""
    return torch.from_numpy(np.unique(np.linspace(0, length - 1, min(rows, length)).astype(np.int64)))


def column_digests(columns: Mapping[str, Tensor]) -> list[bytes]:
    """A hash of every row of columns [n, ...]: of its bytes, and of the columns' names, types and shapes. No Python per value."""
    kind = [(name, column.dtype, tuple(column.shape[1:])) for name, column in columns.items()]
    parts = [c.detach().cpu().contiguous().reshape(len(c), c[:1].numel()).view(torch.uint8).numpy() for c in columns.values()]
    seed = xxhash.xxh3_64_intdigest(repr(kind).encode())
    return [xxhash.xxh3_128_digest(row, seed) for row in np.concatenate(parts, axis=1)]


def row_digest(row: Any, *, whole: bool = True) -> str:
    """A hash of a row, or of several. Without `whole`, of what a fingerprint has always told: of other types the name alone."""
    state = xxhash.xxh3_128()
    _add(state, row, whole)
    return state.hexdigest()


def _add(state: Any, part: Any, whole: bool) -> None:
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
            _add(state, value, whole)
    elif isinstance(part, str | bytes | int | float | None):
        state.update(repr(part).encode())
    elif isinstance(part, Sequence):
        for value in part:
            _add(state, value, whole)
    elif whole and isinstance(part, np.generic | complex):
        state.update(repr(part).encode())
    elif whole and (opened := open_up(part)) is not None:
        for value in opened[0]:
            _add(state, value, whole)
