"""Samples -> batches on the device. Arrays are sliced whole; other data sets are read sample by sample (fetch.py)."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, tee
from typing import Any, final

import numpy as np
import torch
from msgspec import Struct
from msgspec.structs import replace
from torch import Tensor
from torch.utils.data import default_collate as default_collate

from harness.parts.fetch import Collate, Fetched, Pool, Task, fetch, named
from harness.parts.fetch import MapStyle as MapStyle
from harness.plan.config import DataConfig
from harness.plan.errors import UserError
from harness.plan.order import Chunk, Deal, Order, derive, keys

AHEAD_BYTES, AHEAD_STEPS = 1 << 22, 512
"""Of a Table so much at most is gathered at once, for so many steps: what a slice costs is little of it its rows."""
ALIGNED = 64
"""Bytes at whose multiples torch lays tensors. A batch begins at one too: elsewhere kernels may round differently."""


@final
class Table:
    """A data set that is a few tensors of the same first length, in memory: a batch is one slice, no Python per sample."""

    def __init__(self, columns: Mapping[str, Tensor]) -> None:
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"columns of a Table differ in length: {lengths}")
        self.columns = dict(columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def take(self, indices: Tensor) -> dict[str, Tensor]:
        """The rows `indices` (int64 [n]) of every column, each [n, ...]."""
        return {name: column.index_select(0, indices.to(column.device)) for name, column in self.columns.items()}


Data = Table | MapStyle


class Micro(Struct, frozen=True):
    """One forward pass: its batch on the device, and the chunk of the stream it holds, less what could not be read."""

    batch: Any
    chunk: Chunk


@dataclass(frozen=True)
class Trouble:
    """What went wrong with fetching: the sample `sample` is left out, or (None) a worker was lost."""

    sample: int | None
    text: str


@final
class Feed:
    """The batches of one process. `order` None reads the data set from front to back (evaluation).

    A sample that cannot be read is left out, now and later: `quarantine` holds the ids. What went wrong waits in `troubles` until
    somebody tells it.
    """

    def __init__(
        self,
        data: Data,
        *,
        order: Order | None,
        device: torch.device,
        dtype: torch.dtype,
        collate: Collate = default_collate,
        workers: int = 0,
        key_seed: int | None = None,
        faults: DataConfig | None = None,
    ) -> None:
        if not isinstance(data, Table | MapStyle):
            raise UserError("recipe.use", f"data() gave {type(data).__name__}", "give a Table, or a data set with len() and [i]")
        self.data, self.order, self.device, self.dtype = data, order, device, dtype
        self.collate, self.workers, self.key_seed, self.faults = collate, workers, key_seed, faults or DataConfig()
        self.quarantine: set[int] = set()
        self.troubles: list[Trouble] = []
        self._replaced = 0
        self._spare: tuple[Any, int] | None = None

    def steps(self, deals: Iterable[Deal]) -> Iterator[tuple[Deal, list[Micro]]]:
        """The batches of each deal, in order. A data set that is no Table may be read ahead by worker processes."""
        if isinstance(self.data, Table):
            yield from self._gathered(self.data, iter(deals))
            return
        now, later = tee(deals)
        chunks, asked = tee(chunk for deal in later for chunk in deal.chunks)
        answers = self._answers(self.data, map(self._task, asked))
        for deal in now:
            yield deal, [self._micro(next(chunks), *next(answers)) for _ in deal.chunks]

    def _gathered(self, data: Table, deals: Iterator[Deal]) -> Iterator[tuple[Deal, list[Micro]]]:
        """`steps` of a Table: rows of several deals at once, where each batch then lies as it would alone."""
        width = sum(column[:1].nbytes for column in data.columns.values())
        for first in deals:
            size = width * sum([c.count for c in first.chunks])
            group = [first, *islice(deals, min(AHEAD_BYTES // max(size, 1), AHEAD_STEPS))]
            batches = iter(self._cut(data, [c for deal in group for c in deal.chunks]))
            yield from [(deal, [Micro(next(batches), c) for c in deal.chunks]) for deal in group]

    def _cut(self, data: Table, chunks: list[Chunk]) -> list[dict[str, Tensor]]:
        """The batch of each chunk on the device, with its random keys where the recipe augments: gathered and moved as one."""
        spans: list[tuple[int, int]] = []
        for c in chunks:
            start = spans.pop()[0] if spans and spans[-1][1] == c.start else c.start
            spans.append((start, c.start + c.count))
        whole = data.take(torch.cat([self._indices(*span) for span in spans]))
        if self.key_seed is not None:
            whole["key"] = torch.from_numpy(np.concatenate([keys(self.key_seed, *span) for span in spans]))
        moved: dict[str, Tensor] = move(whole, self.device, self.dtype)
        counts = [c.count for c in chunks]
        columns = [[_aligned(part) for part in torch.split(column, counts)] for column in moved.values()]
        return [dict(zip(moved, parts, strict=True)) for parts in zip(*columns, strict=True)]

    def example(self, most: int) -> tuple[Any, int]:
        """(a batch, its samples) as passes get them: of a Table, its first `most`; else the last that was fetched."""
        few = min(most, len(self.data))
        if isinstance(self.data, Table):
            return self._place(self.data.take(torch.arange(few)), Chunk(0, few)), few
        batch, count = self._spare or (None, 0)
        return batch, count

    def _indices(self, start: int, stop: int) -> Tensor:
        """The samples at stream positions [start, stop): int64 [stop - start]."""
        if self.order is None:
            return torch.arange(start, stop)
        return torch.from_numpy(self.order.take(start, stop))

    def _task(self, chunk: Chunk) -> Task:
        ids = tuple(self._indices(chunk.start, chunk.start + chunk.count).tolist())
        skip = self.quarantine.intersection(ids) if self.quarantine else ()
        return Task(ids, derive(self.order.seed if self.order else 0, chunk.start), frozenset(skip))

    def _answers(self, data: MapStyle, tasks: Iterable[Task]) -> Iterator[tuple[Task, Fetched]]:
        """What came of each task."""
        if not self.workers:
            yield from ((task, fetch(data, self.collate, task)) for task in tasks)
            return
        pool = Pool(data, self.collate, self.workers, self.faults.timeout_s, self._lost)
        try:
            yield from pool.ahead(tasks)
        finally:
            pool.close()

    def _lost(self, text: str) -> None:
        """A worker is lost, and will be replaced. Raises UserError where that was so too often."""
        if self._replaced == self.faults.restarts:
            at = f"is {self._replaced}, and {text}"
            raise UserError("data.restarts", at, "look at these samples, raise data.timeout_s if they are slow, or allow more")
        self._replaced += 1
        self.troubles.append(Trouble(None, f"{text}: another reads these one by one ({self._replaced} of {self.faults.restarts})"))

    def _micro(self, chunk: Chunk, task: Task, fetched: Fetched) -> Micro:
        """A pass of what could be read. Where that is nothing, an earlier batch that counts nothing stands in, as others wait."""
        for place, why in fetched.bad:
            number = task.ids[place]
            if number not in self.quarantine:
                self.quarantine.add(number)
                self.troubles.append(Trouble(number, why))
        if fetched.kept:
            self._spare = fetched.batch, len(fetched.kept)
            return Micro(self._place(fetched.batch, chunk, fetched.kept), replace(chunk, count=len(fetched.kept)))
        if self._spare is None:
            why = f" ({fetched.bad[0][1]})" if fetched.bad else ""
            raise UserError("recipe.use", f"none of the first samples {named(task.ids)} can be read{why}", "look at the data")
        batch, count = self._spare
        return Micro(self._place(batch, chunk, tuple(range(count))), replace(chunk, count=count, ghost=True))

    def _place(self, batch: Any, chunk: Chunk, kept: tuple[int, ...] | None = None) -> Any:
        """Move a batch to the device, floats in the model's type; add the random keys where the recipe augments.

        `kept`: the places in the chunk that the batch has; None: all.
        """
        if self.key_seed is not None:
            if not isinstance(batch, dict):
                raise UserError("recipe.use", "the recipe augments, but its batch is no dict", "collate into a dict")
            count = chunk.count if kept is None else kept[-1] + 1
            every = torch.from_numpy(keys(self.key_seed, chunk.start, chunk.start + count))
            batch["key"] = every if kept is None else every[list(kept)]
        return move(batch, self.device, self.dtype)


def _aligned(part: Tensor) -> Tensor:
    return part if part.data_ptr() % ALIGNED == 0 else part.clone()


def move(batch: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A batch (tensor, dict, list or tuple of batches) on `device`, its floating tensors as `dtype`."""
    if isinstance(batch, Tensor):
        kind = dtype if batch.is_floating_point() else batch.dtype
        if device.type == "cuda" and batch.device.type == "cpu":
            batch = batch.pin_memory()  # from other host memory a copy waits for the device
        return batch.to(device, kind, non_blocking=True)
    if isinstance(batch, dict):
        return {name: move(part, device, dtype) for name, part in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(move(part, device, dtype) for part in batch)
    return batch
