"""Samples -> batches on the device. Arrays are sliced whole; other data sets go through torch's DataLoader."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import tee
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import default_collate as default_collate

from harness.plan.errors import UserError
from harness.plan.order import Chunk, Deal, Order, keys


@runtime_checkable
class MapStyle(Protocol):
    """A data set with a length and integer indexing, as torch's map-style Dataset."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


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
        return {name: column[indices] for name, column in self.columns.items()}


Data = Table | MapStyle


@dataclass(frozen=True)
class Micro:
    """One forward pass: its batch on the device, and the chunk of the stream it holds."""

    batch: Any
    chunk: Chunk


@final
class Feed:
    """The batches of one process. `order` None reads the data set from front to back (evaluation)."""

    def __init__(
        self,
        data: Data,
        *,
        order: Order | None,
        device: torch.device,
        dtype: torch.dtype,
        collate: Callable[[list[Any]], Any] = default_collate,
        workers: int = 0,
        key_seed: int | None = None,
    ) -> None:
        if not isinstance(data, Table | MapStyle):
            raise UserError("recipe.use", f"data() gave {type(data).__name__}", "give a Table, or a data set with len() and [i]")
        self.data, self.order, self.device, self.dtype = data, order, device, dtype
        self.collate, self.workers, self.key_seed = collate, workers, key_seed

    def steps(self, deals: Iterable[Deal]) -> Iterator[tuple[Deal, list[Micro]]]:
        """The batches of each deal, in order. A data set that is no Table may be read ahead by worker processes."""
        if isinstance(self.data, Table):
            for deal in deals:
                yield deal, [Micro(self._place(self.data.take(self._indices(c)), c), c) for c in deal.chunks]
            return
        now, later = tee(deals)
        ahead = iter(self._loader(c for deal in later for c in deal.chunks)) if self.workers else None
        for deal in now:
            micros = []
            for chunk in deal.chunks:
                batch = next(ahead) if ahead is not None else self.collate([self.data[int(i)] for i in self._indices(chunk)])
                micros.append(Micro(self._place(batch, chunk), chunk))
            yield deal, micros

    def _indices(self, chunk: Chunk) -> Tensor:
        stop = chunk.start + chunk.count
        if self.order is None:
            return torch.arange(chunk.start, stop)
        return torch.from_numpy(self.order.take(chunk.start, stop))

    def _loader(self, chunks: Iterable[Chunk]) -> DataLoader[Any]:
        return DataLoader(
            self.data,  # type: ignore[arg-type]
            batch_sampler=(self._indices(c).tolist() for c in chunks),
            num_workers=self.workers,
            collate_fn=self.collate,
            generator=torch.Generator().manual_seed(0),
        )

    def _place(self, batch: Any, chunk: Chunk) -> Any:
        """Move a batch to the device, floats in the model's type; add the random keys where the recipe augments."""
        if self.key_seed is not None:
            if not isinstance(batch, dict):
                raise UserError("recipe.use", "the recipe augments, but its batch is no dict", "collate into a dict")
            batch["key"] = torch.from_numpy(keys(self.key_seed, chunk.start, chunk.start + chunk.count))
        return move(batch, self.device, self.dtype)


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
