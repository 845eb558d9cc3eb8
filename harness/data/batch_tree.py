"""Batches as people build them: tensors in any nesting of dicts, sequences, named tuples, dataclasses and packed sequences.

Every walk over a batch goes through `open_up`, which says what a container holds and how another of its type is made.
"""

import copy
import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from types import SimpleNamespace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import is_namedtuple_instance

Opened = tuple[list[Any], Callable[[list[Any]], Any]]
"""(what a container holds, how one of its type is made of as many other things)."""


@runtime_checkable
class Movable(Protocol):
    """An object that goes to a device by a method of its own, such as a graph of torch_geometric."""

    def to(self, device: torch.device, /) -> Any: ...


def open_up(batch: Any) -> Opened | None:
    """What a container holds, or None if `batch` is none. Keys, order and type stay."""
    if isinstance(batch, Mapping):
        return list(batch.values()), lambda parts: _mapping(batch, parts)
    if isinstance(batch, PackedSequence):  # its batch_sizes stay on the host
        held = [batch.data, batch.sorted_indices, batch.unsorted_indices]
        return held, lambda parts: PackedSequence(parts[0], batch.batch_sizes, *parts[1:])
    if is_namedtuple_instance(batch):
        return list(batch), type(batch)._make
    if isinstance(batch, deque):
        return list(batch), lambda parts: deque(parts, batch.maxlen)
    if isinstance(batch, list | tuple):
        return list(batch), type(batch)
    if isinstance(batch, SimpleNamespace):
        return list(vars(batch).values()), lambda parts: _attributes(batch, vars(batch), parts)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        names = [field.name for field in dataclasses.fields(batch)]
        return [getattr(batch, name) for name in names], lambda parts: _attributes(batch, names, parts)
    return None


def _mapping(batch: Mapping[Any, Any], parts: list[Any]) -> Mapping[Any, Any]:
    """A mapping of the same type and keys; a copy keeps what else it has (a default, a tokenizer's encodings)."""
    named = dict(zip(batch, parts, strict=True))
    if type(batch) is dict:
        return named
    if not isinstance(batch, MutableMapping):
        return type(batch)(named)  # type: ignore[call-arg]
    new = copy.copy(batch)
    for name, part in named.items():
        new[name] = part
    return new


def _attributes(batch: Any, names: Any, parts: list[Any]) -> Any:
    """A copy of an object with other attributes, also of a frozen dataclass."""
    new = copy.copy(batch)
    for name, part in zip(list(names), parts, strict=True):
        object.__setattr__(new, name, part)
    return new


def leaves(batch: Any) -> Iterator[Any]:
    """Everything in a batch that is not a container, in order."""
    opened = None if isinstance(batch, Tensor) else open_up(batch)
    if opened is None:
        yield batch
        return
    for part in opened[0]:
        yield from leaves(part)


def map_leaves(change: Callable[[Any], Any], batch: Any) -> Any:
    """The same batch, each thing in it that is not a container replaced by `change` of it."""
    if isinstance(batch, Tensor):
        return change(batch)
    opened = open_up(batch)
    if opened is None:
        return change(batch)
    parts, make = opened
    return make([map_leaves(change, part) for part in parts])


def pinned(leaf: Tensor, kind: torch.dtype) -> Tensor:
    """A tensor of the host, to be sent as it is: from other memory, or from memory with gaps, a copy waits for the device.

    It has the type `kind` already where that takes no more bytes than its own.
    """
    if leaf.is_nested or leaf.layout is not torch.strided:
        return leaf.pin_memory()
    sent = kind if kind.itemsize <= leaf.dtype.itemsize else leaf.dtype
    if sent == leaf.dtype and leaf.is_contiguous() and leaf.is_pinned():
        return leaf
    return torch.empty_like(leaf, dtype=sent, pin_memory=True).copy_(leaf)


def move(batch: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    """A batch on `device`, its floating tensors as `dtype` (None: as they are).

    What is not a tensor stays, unless it has a `to(device)` of its own.
    """

    def moved(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            kind = dtype if dtype is not None and leaf.is_floating_point() else leaf.dtype
            if device.type == "cpu" or leaf.device.type != "cpu":
                return leaf.to(device, kind, non_blocking=True)
            return pinned(leaf, kind).to(device, non_blocking=True).to(kind)
        return leaf.to(device) if isinstance(leaf, Movable) else leaf

    return map_leaves(moved, batch)
