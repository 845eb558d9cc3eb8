"""Samples -> batches on the device. Columns are gathered whole; other data sets are read sample by sample (workers.py)."""

from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from itertools import islice, tee
from typing import Any, final

import numpy as np
import torch
from msgspec import Struct
from msgspec.structs import replace
from torch import Tensor
from torch.utils.data import default_collate as default_collate

from harness.config.errors import UserError
from harness.config.schema import DataConfig
from harness.data.batch_tree import move
from harness.data.columns import Columns
from harness.data.columns import Table as Table
from harness.data.sample_order import Chunk, SampleOrder, StepShards, keys
from harness.data.sampler_order import SamplerOrder
from harness.data.workers import Collate, Fetched, Pool, Reader, Task, named
from harness.data.workers import MapStyle as MapStyle

AHEAD_BYTES, AHEAD_STEPS = 1 << 22, 512
"""At most so many bytes of columns, and so many steps, are gathered at once: the cost of one gather hardly depends on its rows."""
ALIGNED = 64
"""Alignment of torch's tensors in bytes. Batches are aligned too: kernels may round differently elsewhere."""


Data = Columns | MapStyle


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

    A sample that cannot be read is left out, now and later: `quarantine` holds the ids. What went wrong is collected in `troubles`
    until it is reported. `seed` is the run's, from which samples draw their random numbers.
    `dtype`: of floats in batches; None: as the data have them.
    `equal`: no pass may have fewer rows than asked for, as ranks wait for each other within it.
    """

    def __init__(  # noqa: PLR0913  settings, each given by its name
        self,
        data: Data,
        *,
        order: SampleOrder | SamplerOrder | None,
        device: torch.device,
        dtype: torch.dtype | None,
        seed: int = 0,
        collate: Collate = default_collate,
        workers: int = 0,
        key_seed: int | None = None,
        faults: DataConfig | None = None,
        equal: bool = False,
    ) -> None:
        self.data, self.order, self.device, self.dtype, self.seed = data, order, device, dtype, seed
        self.collate, self.workers, self.key_seed, self.faults = collate, workers, key_seed, faults or DataConfig()
        self.equal = equal
        self.quarantine: set[int] = set()
        self.troubles: list[Trouble] = []
        self._replaced = 0
        self._spare: tuple[Any, int] | None = None

    def steps(self, step_shards: Iterable[StepShards]) -> Iterator[tuple[StepShards, list[Micro]]]:
        """The batches of each step, in order. Data without columns may be read ahead by worker processes."""
        if isinstance(self.data, Columns):
            yield from self._gathered(self.data, iter(step_shards))
        else:
            yield from self._fetched(self.data, step_shards, self.workers)

    def few(self, shards: StepShards) -> list[Micro]:
        """The batches of one step by itself, for which one worker is enough."""
        one = iter([shards])
        data = self.data
        steps = self._gathered(data, one) if isinstance(data, Columns) else self._fetched(data, one, min(self.workers, 1))
        (found,) = steps
        return found[1]

    def _fetched(self, data: MapStyle, step_shards: Iterable[StepShards], workers: int) -> Iterator[tuple[StepShards, list[Micro]]]:
        """`steps` of data that is read sample by sample."""
        now, later = tee(step_shards)
        chunks, asked = tee(chunk for shards in later for chunk in shards.chunks)
        answers = self._answers(data, map(self._task, asked), workers)
        for shards in now:
            yield shards, [self._micro(next(chunks), *next(answers)) for _ in shards.chunks]

    def _gathered(self, data: Columns, step_shards: Iterator[StepShards]) -> Iterator[tuple[StepShards, list[Micro]]]:
        """`steps` of columns: rows of several steps at once, where each batch then lies as it would alone."""
        for first in step_shards:
            size = data.row_bytes * sum([c.count for c in first.chunks])
            group = [first, *islice(step_shards, min(AHEAD_BYTES // max(size, 1), AHEAD_STEPS))]
            batches = iter(self._cut(data, [c for shards in group for c in shards.chunks]))
            yield from [(shards, [Micro(next(batches), c) for c in shards.chunks]) for shards in group]

    def _cut(self, data: Columns, chunks: list[Chunk]) -> list[dict[str, Tensor]]:
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
        columns = [_parts(column, counts) for column in moved.values()]
        return [dict(zip(moved, parts, strict=True)) for parts in zip(*columns, strict=True)]

    def example(self, most: int) -> tuple[Any, int]:
        """(a batch, its samples) as passes get them: of columns, the first `most`; else the last that was fetched."""
        few = min(most, len(self.data))
        if isinstance(self.data, Columns):
            return self._place(self.data.take(torch.arange(few)), Chunk(0, few)), few
        batch, count = self._spare or (None, 0)
        return batch, count

    def ids(self, chunk: Chunk) -> list[int]:
        """The samples of a chunk, in its order."""
        found: list[int] = self._indices(chunk.start, chunk.start + chunk.count).tolist()
        return found

    def _indices(self, start: int, stop: int) -> Tensor:
        """The samples at stream positions [start, stop): int64 [stop - start]."""
        if self.order is None:
            return torch.arange(start, stop)
        return torch.from_numpy(self.order.take(start, stop))

    def _task(self, chunk: Chunk) -> Task:
        ids = tuple(self._indices(chunk.start, chunk.start + chunk.count).tolist())
        skip = self.quarantine.intersection(ids) if self.quarantine else ()
        return Task(ids, self.seed, chunk.start, frozenset(skip))

    def _answers(self, data: MapStyle, tasks: Iterable[Task], workers: int) -> Iterator[tuple[Task, Fetched]]:
        """The results of the tasks, in order."""
        if not workers:
            reader = Reader(data, self.collate)
            yield from ((task, reader.fetch(task)) for task in tasks)
            return
        pool = Pool(data, self.collate, workers, self.faults.timeout_s, self._lost)
        try:
            yield from pool.ahead(tasks)
        finally:
            pool.close()

    def _lost(self, text: str) -> None:
        """A worker is lost, and will be replaced. Raises UserError if that was so too often."""
        if self._replaced == self.faults.restarts:
            at = f"is {self._replaced}, and {text}"
            raise UserError("data.restarts", at, "look at these samples, raise data.timeout_s if they are slow, or allow more")
        self._replaced += 1
        self.troubles.append(
            Trouble(None, f"{text}: a new worker reads them one by one ({self._replaced} of {self.faults.restarts})")
        )

    def _micro(self, chunk: Chunk, task: Task, fetched: Fetched) -> Micro:
        """A pass of the samples that could be read.

        If none could, an earlier batch with weight zero is used, as other ranks wait.
        """
        for place, why in fetched.bad:
            number = task.ids[place]
            if number not in self.quarantine:
                self.quarantine.add(number)
                self.troubles.append(Trouble(number, why))
        if self.equal and len(fetched.kept) < len(task.ids):
            lost = [task.ids[place] for place in range(len(task.ids)) if place not in fetched.kept]
            why = f" ({fetched.bad[0][1]})" if fetched.bad else ""
            at = f"samples {named(lost)} cannot be read{why}, and the loss gathers over ranks, of which none may have fewer rows"
            raise UserError("recipe.use", at, "repair them, or leave them out of the data set")
        if fetched.kept:
            self._spare = fetched.batch, len(fetched.kept)
            return Micro(self._place(fetched.batch, chunk, fetched.kept), replace(chunk, count=len(fetched.kept)))
        if self._spare is None:
            why = f" ({fetched.bad[0][1]})" if fetched.bad else ""
            raise UserError("recipe.use", f"none of the first samples {named(task.ids)} can be read{why}", "look at the data")
        batch, count = self._spare
        return Micro(self._place(batch, chunk, tuple(range(count))), replace(chunk, count=count, padding=True))

    def _place(self, batch: Any, chunk: Chunk, kept: tuple[int, ...] | None = None) -> Any:
        """Move a batch to the device, floats in the model's type; add the random keys where the recipe augments.

        `kept`: the places in the chunk that the batch has; None: all.
        """
        if self.key_seed is not None:
            if not isinstance(batch, MutableMapping):
                at = f"the recipe augments, but its batch is a {type(batch).__name__}, which takes no `key`"
                raise UserError("recipe.use", at, "collate into a dict")
            count = chunk.count if kept is None else kept[-1] + 1
            every = torch.from_numpy(keys(self.key_seed, chunk.start, chunk.start + count))
            batch["key"] = every if kept is None else every[list(kept)]
        return move(batch, self.device, self.dtype)


def _parts(column: Tensor, counts: list[int]) -> Sequence[Tensor]:
    """The rows of each chunk, one behind another in `column`, at aligned addresses: by one copy for all where they are as many."""
    rows, chunks = counts[0], len(counts)
    if counts.count(rows) < chunks or not column.is_contiguous():
        return [_aligned(part) for part in torch.split(column, counts)]
    size, unit = rows * column[0].numel(), column.element_size()
    room = -(-size * unit // ALIGNED) * ALIGNED // unit
    laid = column
    if room > size or column.data_ptr() % ALIGNED:
        laid = column.new_empty(chunks, room)
        laid[:, :size] = column.view(chunks, size)
    return laid.as_strided((chunks, rows, *column.shape[1:]), (room, *column.stride())).unbind()


def _aligned(part: Tensor) -> Tensor:
    return part if part.data_ptr() % ALIGNED == 0 else part.clone()
