"""Checkpoints as they are read: every digest checked before anything is used, the newest good one taken.

Nothing here unpickles, follows a link, or runs what a file says. Any number of ranks of any backend reads the pieces it needs
(tensor_slices.py); the ranks share the work of checking. manifest.py and safetensors_io.py say how a checkpoint is laid out on
disk, staging.py and writer_process.py how it is written.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from harness.checkpoint.manifest import EVALUATED, STATE, DamagedError, seal
from harness.checkpoint.moments_check import check_type, odd_numbers
from harness.checkpoint.safetensors_io import Entry, read_header
from harness.checkpoint.staging import NAMES
from harness.checkpoint.state_check import read_state
from harness.checkpoint.storage import Store, open_store
from harness.checkpoint.tensor_slices import Part, SliceReader
from harness.checkpoint.train_state import State
from harness.checkpoint.verified import ODD, check_file, read_manifest
from harness.config.errors import UserError
from harness.config.urls import check_store
from harness.distributed.process_group import gather, peers

_TYPES = {name: dtype for dtype, name in NAMES.items()}


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint. `about` holds the facts of the run it was saved by."""

    name: str
    state: State
    about: dict[str, Any]
    tensors: SliceReader
    odd: list[str] = field(default_factory=list)
    """What is wrong with numbers that this rank has read so far, see moments_check.py."""


def store_at(where: str) -> Store:
    """The store at a path or URL. Raises UserError if it cannot be reached."""
    if "://" in where:
        check_store("checkpoint.dir", where)
    try:
        return open_store(where)
    except (ImportError, OSError, ValueError) as e:
        raise UserError("checkpoint.dir", f"{where!r} cannot be reached: {e}", "give a path, or a URL that fsspec knows") from e


def newest(where: str) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, or None if there is none at all; and what was wrong with newer ones.

    All ranks call it, and get the same. Raises UserError if the place cannot be reached.
    """
    store, complaints = store_at(where), list[str]()
    try:
        names = store.names()
    except OSError as e:
        raise UserError("checkpoint.dir", f"{where!r} cannot be read: {e}", "fix that, or give another place") from e
    for name in gather(names)[0]:  # rank 0's list: a shared disk may show the other ranks an older one
        try:
            return load(store, name), complaints
        except DamagedError as e:
            complaints.append(f"{name}: {e}")
    return None, complaints


def well(where: str) -> Iterator[Checkpoint]:
    """The checkpoints that verify and were written while the run was well, the newest first. All ranks ask for equally many."""
    store = store_at(where)
    for name in gather(store.names())[0]:
        try:
            found = load(store, name)
        except DamagedError:
            continue
        if found.about["well"]:
            yield found


def add_evaluation(where: str, name: str, document: Mapping[str, Any]) -> None:
    """Add to a checkpoint its state after the evaluation that followed. One rank calls it. Raises OSError."""
    store_at(where).append(name, EVALUATED, [seal(document)])


def drop_newer(where: str, kept: str) -> None:
    """Remove the checkpoints that are newer than `kept`: a roll-back has given them up. One rank calls it. Raises OSError."""
    store = store_at(where)
    names = store.names()
    for name in names[: names.index(kept)] if kept in names else ():
        store.drop(name)


def load(store: Store, name: str) -> Checkpoint:
    """Read a checkpoint after checking every digest, each rank its share. Raises DamagedError, on every rank alike."""
    found, problem = None, ""
    try:
        found = _load(store, name)
    except DamagedError as e:
        problem = str(e)
    except ODD as e:
        problem = f"{type(e).__name__}: {e}"
    problems = [p for p in gather(problem) if p]
    if problems or found is None:
        raise DamagedError(problems[0])
    return found


def _load(store: Store, name: str) -> Checkpoint:
    rank, ranks = peers()
    files = read_manifest(store, name)
    for number, (file, digest) in enumerate(files.items()):
        if file == STATE or number % ranks == rank:
            check_file(store, name, file, digest)
    state, about = read_state(store, name, files)
    odd = list[str]()
    tensors = SliceReader(
        part for file, digest in files.items() if file != STATE for part in _parts(store, name, file, digest.bytes, odd)
    )
    return Checkpoint(name, state, about, tensors, odd)


def _parts(store: Store, name: str, file: str, size: int, odd: list[str]) -> Iterator[Part]:
    """What a file holds, without reading it. Raises ValueError. What is wrong with what is read is added to `odd`."""
    entries, begin = read_header(size, lambda first, last: store.read(name, file, first, last))
    for e in entries:
        check_type(e.name, _TYPES[e.dtype])
        yield Part(e.name, e.shape, e.start, e.count, _fetch(store, name, file, begin, e, odd), _TYPES[e.dtype])


def _fetch(store: Store, name: str, file: str, begin: int, entry: Entry, odd: list[str]) -> Callable[[int, int], Tensor]:
    """Reads elements [low, high) of an entry."""

    def fetch(low: int, high: int) -> Tensor:
        out = torch.empty(high - low, dtype=_TYPES[entry.dtype])
        first = begin + entry.first + low * out.element_size()
        store.read_into(name, file, first, out.view(torch.uint8).numpy().data)
        if problem := odd_numbers(entry.name, out):
            odd.append(problem)
        return out

    return fetch
