"""Checkpoints as they are read: every digest checked before anything is used, the newest good one taken.

Nothing here unpickles, follows a link, or runs what a file says. Any number of ranks of any backend reads the pieces it needs
(pieces.py); the ranks share the work of checking. manifest.py and tensorfile.py say how a checkpoint lies on a disk, staging.py and
writer.py how it gets there.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.engine.manifest import LARGEST_JSON, MANIFEST, STATE, DamagedError, Digest, decode
from harness.engine.pieces import Part, Source
from harness.engine.process import gather, peers
from harness.engine.staging import NAMES
from harness.engine.state import State
from harness.engine.stores import Store, open_store
from harness.engine.tensorfile import Entry, read_header
from harness.plan.errors import UserError

_TYPES = {name: dtype for dtype, name in NAMES.items()}


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint. `about` holds the facts of the run it was saved by."""

    name: str
    state: State
    about: dict[str, Any]
    tensors: Source


def store_at(where: str) -> Store:
    """The store at a path or URL. Raises UserError where there is no way to it."""
    scheme, sep, rest = where.partition("://")
    if sep and scheme == "memory":
        raise UserError("checkpoint.dir", f"is {where!r}, which only one process sees", "give a path, or the URL of a store")
    if sep and "@" in rest.partition("/")[0]:
        at = f"is a URL of {scheme} with a name or password in it, which would stand in the run folder"
        raise UserError("checkpoint.dir", at, "leave it out, and give credentials by the environment")
    try:
        return open_store(where)
    except (ImportError, OSError, ValueError) as e:
        raise UserError("checkpoint.dir", f"{where!r} cannot be reached: {e}", "give a path, or a URL that fsspec knows") from e


def newest(where: str) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, or None where there is none at all; and what was wrong with newer ones.

    All ranks call it, and get the same. Raises UserError where the place cannot be reached.
    """
    store, complaints = store_at(where), list[str]()
    try:
        names = store.names()
    except OSError as e:
        raise UserError("checkpoint.dir", f"{where!r} cannot be read: {e}", "mend that, or give another") from e
    for name in gather(names)[0]:  # rank 0's: a disk that is shared may show the others an older list
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


def drop_newer(where: str, kept: str) -> None:
    """Remove the checkpoints that are newer than `kept`: a roll-back has given them up. One rank calls it. Raises OSError."""
    store = store_at(where)
    names = store.names()
    for name in names[: names.index(kept)]:
        store.drop(name)


def load(store: Store, name: str) -> Checkpoint:
    """Read a checkpoint after checking every digest, each rank its share. Raises DamagedError, on every rank alike."""
    found, problem = None, ""
    try:
        found = _load(store, name)
    except DamagedError as e:
        problem = str(e)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        problem = f"{type(e).__name__}: {e}"
    problems = [p for p in gather(problem) if p]
    if problems or found is None:
        raise DamagedError(problems[0])
    return found


def _load(store: Store, name: str) -> Checkpoint:
    rank, ranks = peers()
    files = decode(store.read(name, MANIFEST, 0, _bounded(store.size(name, MANIFEST), MANIFEST)))
    for number, (file, digest) in enumerate(files.items()):
        if (file == STATE or number % ranks == rank) and not _same(store, name, file, digest):
            raise DamagedError(f"{file} is not what was written")
    document = json.loads(store.read(name, STATE, 0, _bounded(files[STATE].bytes, STATE)))
    tensors = Source(part for file, digest in files.items() if file != STATE for part in _parts(store, name, file, digest.bytes))
    return Checkpoint(name, State.from_json(document["state"]), document["about"], tensors)


def _same(store: Store, name: str, file: str, digest: Digest) -> bool:
    """Whether a file is the one that was written; one of another size is not read."""
    return store.size(name, file) == digest.bytes and store.digest(name, file) == digest


def _bounded(size: int | None, file: str) -> int:
    if size is None:
        raise DamagedError(f"{file} is missing")
    if size > LARGEST_JSON:
        raise DamagedError(f"{file} has {size:,} bytes, more than any that is written")
    return size


def _parts(store: Store, name: str, file: str, size: int) -> Iterator[Part]:
    """What a file holds, without reading it."""
    entries, begin = read_header(size, lambda first, last: store.read(name, file, first, last))
    for e in entries:
        yield Part(e.name, e.shape, e.start, e.count, _fetch(store, name, file, begin, e))


def _fetch(store: Store, name: str, file: str, begin: int, entry: Entry) -> Callable[[int, int], Tensor]:
    """Reads elements [low, high) of an entry."""

    def fetch(low: int, high: int) -> Tensor:
        out = torch.empty(high - low, dtype=_TYPES[entry.dtype])
        first = begin + entry.first + low * out.element_size()
        store.read_into(name, file, first, out.view(torch.uint8).numpy().data)
        return out

    return fetch
