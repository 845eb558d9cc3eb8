"""State as named pieces: contiguous ranges of whole tensors, the same names and shapes on every backend and world.

A piece holds the elements [start, start + n) of a tensor in row-major order. What lies on a rank, be it a copy, a shard of rows or
a slice of a flat buffer, is such a range; so each rank writes what it has, and any other layout reads the ranges it needs.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Protocol, final

import torch
from torch import Tensor


@dataclass(frozen=True)
class TensorSlice:
    """Elements [start, start + len(data)) of the tensor `name` of shape `shape`. `data` is one-dimensional, on any device."""

    name: str
    shape: tuple[int, ...]
    start: int
    data: Tensor


def whole(name: str, tensor: Tensor) -> TensorSlice:
    """A tensor as one piece."""
    return TensorSlice(name, tuple(tensor.shape), 0, tensor.detach().reshape(-1))


def share(pieces: Iterable[TensorSlice], rank: int, ranks: int) -> list[TensorSlice]:
    """This rank's equal share, by elements, of pieces that every rank holds."""
    held = list(pieces)
    total = sum(len(p.data) for p in held)
    first, last = total * rank // ranks, total * (rank + 1) // ranks
    out, offset = [], 0
    for p in held:
        low, high = max(first - offset, 0), min(last - offset, len(p.data))
        if low < high:
            out.append(TensorSlice(p.name, p.shape, p.start + low, p.data[low:high]))
        offset += len(p.data)
    return out


class Sliceable(Protocol):
    """A tensor, or a tensor in a file."""

    def __getitem__(self, where: slice, /) -> Tensor: ...


def slicer(held: Sliceable) -> Callable[[int, int], Tensor]:
    """The `fetch` of a Part whose data can be sliced."""
    return lambda low, high: held[low:high]


@dataclass(frozen=True)
class Part:
    """A piece that can be fetched: `fetch(low, high)` gives its elements [low, high), counted from its own start."""

    name: str
    shape: tuple[int, ...]
    start: int
    count: int
    fetch: Callable[[int, int], Tensor]
    dtype: torch.dtype | None = None
    """The type of the elements, where it is known before they are fetched."""


@final
class SliceReader:
    """Whole tensors out of parts. Raises ValueError if the parts of a tensor do not cover it exactly once."""

    def __init__(self, parts: Iterable[Part]) -> None:
        self._parts: dict[str, list[Part]] = {}
        for part in parts:
            self._parts.setdefault(part.name, []).append(part)
        for name, found in self._parts.items():
            found.sort(key=lambda p: p.start)
            end = 0
            for part in found:
                if part.start != end or part.shape != found[0].shape:
                    raise ValueError(f"{name}: elements from {end} on are missing, doubled or of another shape")
                end += part.count
            if end != prod(found[0].shape):
                raise ValueError(f"{name}: {end} elements of {prod(found[0].shape)}")

    @staticmethod
    def of(pieces: Iterable[TensorSlice]) -> "SliceReader":
        """A reader of slices in memory."""
        return SliceReader(Part(p.name, p.shape, p.start, len(p.data), slicer(p.data)) for p in pieces)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __contains__(self, name: str) -> bool:
        return name in self._parts

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self._parts[name][0].shape

    def dtype(self, name: str) -> torch.dtype | None:
        """The type of a tensor, None if it is not known."""
        return self._parts[name][0].dtype

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of a tensor, [stop - start], on the host."""
        found = []
        for part in self._parts[name]:
            low, high = max(start - part.start, 0), min(stop - part.start, part.count)
            if low < high:
                found.append(part.fetch(low, high))
        return found[0] if len(found) == 1 else torch.cat(found) if found else torch.empty(0)

    def whole(self, name: str) -> Tensor:
        """A tensor in its shape, on the host."""
        shape = self.shape(name)
        return self.read(name, 0, prod(shape)).reshape(shape)
