"""`python -m harness.checkpoint.writer_process`: a process beside each rank that writes checkpoints from the staging buffer.

It imports no torch. Its rank copies slices into shared memory and trains on; the writer checks that they are finite, writes
and flushes them, reads them back, and leaves a note of their digest. Rank 0's writer waits for the notes of all, then commits, and
only then drops older checkpoints. It dies with its rank: what it has not committed is no checkpoint.

Lines in: {"pieces": [[name, shape, start, count, dtype], ...], "bytes": n}, then a `Task` for each save, or {"abandon": why}.
Lines out: {"part": bytes} when this rank's file is safe, {"path", "bytes", "left", "write_s"} when all is committed, or
{"problem": text}.
"""

import ctypes
import json
import mmap
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np

from harness.checkpoint.json_pipe import JsonLineReader, send
from harness.checkpoint.manifest import (
    MANIFEST,
    STATE,
    DamagedError,
    Digest,
    RankedCheckpoint,
    checkpoint_name,
    encode,
    judged,
    tensors_file,
    to_delete,
)
from harness.checkpoint.safetensors_io import WIDTHS, header, lay_out
from harness.checkpoint.storage import BLOCK, Store, open_store
from harness.checkpoint.verified import ODD, read_document, read_manifest

POLL_S = 0.02
_PR_SET_PDEATHSIG = 1
_EXPONENTS: dict[str, tuple[Any, int]] = {
    "C128": (np.uint64, 0x7FF0000000000000),
    "C64": (np.uint32, 0x7F800000),
    "F64": (np.uint64, 0x7FF0000000000000),
    "F32": (np.uint32, 0x7F800000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}
"""A number is not finite where all bits of its exponent are set. Types of 8 bits are not checked."""


class NotWrittenError(Exception):
    """A save that failed; the text says why."""


@dataclass(frozen=True)
class Task:
    """One save of one rank. `state` (JSON) is rank 0's to write; `exempt` names tensors that may be not finite.

    `lineage`: the run's own (State.lineage). Checkpoints of another one are never deleted.
    """

    where: str
    samples: int
    job: str
    rank: int
    ranks: int
    state: str
    keep: int
    keep_best: int
    exempt: tuple[str, ...] = ()
    lineage: str = ""


@final
class Memory:
    """The shared memory of a rank, laid out as a file's data."""

    def __init__(self, handle: int, size: int, pieces: Sequence[Any]) -> None:
        self.entries = lay_out((name, tuple(shape), start, count, dtype) for name, shape, start, count, dtype in pieces)
        self._map = memoryview(mmap.mmap(handle, size, prot=mmap.PROT_READ)) if size else memoryview(b"")

    def blocks(self, exempt: Sequence[str]) -> Iterator[memoryview]:
        """The data, block by block. Raises NotWrittenError where a number is not finite."""
        spans: dict[str, tuple[int, int]] = {}
        for e in self.entries:
            spans[e.dtype] = (spans.get(e.dtype, (e.first, 0))[0], e.last)
        end, looked = self.entries[-1].last if self.entries else 0, False
        for first in range(0, end, BLOCK):
            last = min(first + BLOCK, end)
            parts = [(dtype, max(first, low), min(last, high)) for dtype, (low, high) in spans.items()]
            if not looked and not all(self._finite_bytes(*part) for part in parts):
                self._refuse(exempt)
                looked = True
            yield self._map[first:last]

    def _refuse(self, exempt: Sequence[str]) -> None:
        """Raises NotWrittenError if a tensor that is not exempt has numbers that are not finite."""
        bad = [e.name for e in self.entries if e.name not in exempt and not self._finite_bytes(e.dtype, e.first, e.last)]
        if bad:
            raise NotWrittenError(f"{bad[0]}{f' and {len(bad) - 1} more are' if len(bad) > 1 else ' is'} not finite")

    def _finite_bytes(self, dtype: str, first: int, last: int) -> bool:
        """Whether all numbers in these bytes are finite; yes where there are none."""
        if dtype not in _EXPONENTS or first >= last:
            return True
        kind, mask = _EXPONENTS[dtype]
        bits = np.frombuffer(self._map[first:last], dtype=kind)
        step = (1 << 20) // WIDTHS[dtype]
        return not any((bits[i : i + step] & mask == mask).any() for i in range(0, len(bits), step))


def write_part(store: Store, task: Task, memory: Memory) -> tuple[str, int]:
    """Write this rank's file and the note of its digest; (the folder, bytes). Raises OSError or NotWrittenError."""
    folder = store.begin(checkpoint_name(task.samples), task.job)
    file = tensors_file(task.rank, task.ranks)

    def contents() -> Iterator[bytes | memoryview]:
        yield header(memory.entries)
        yield from memory.blocks(task.exempt)

    found = store.write(folder, file, contents())
    note = json.dumps(asdict(found)).encode()
    store.append(folder, _note(task, task.rank), [note])  # not read back: rank 0 may read the note, and commit, at once
    return folder, found.bytes


def commit(store: Store, task: Task, folder: str, lines: JsonLineReader) -> dict[str, Any]:
    """Rank 0's: wait for all ranks' notes, commit, check, drop older ones. Raises OSError or NotWrittenError."""
    files = {tensors_file(rank, task.ranks): _await(store, task, folder, rank, lines) for rank in range(task.ranks)}
    files[STATE] = store.write(folder, STATE, [task.state.encode()])
    for name, found in files.items():
        if store.size(folder, name) != found.bytes:
            raise NotWrittenError(f"{name} has not the {found.bytes} bytes that its rank wrote")
    for rank in range(task.ranks):
        store.remove(folder, _note(task, rank))
    manifest = encode(files)
    name = store.commit(folder, checkpoint_name(task.samples), manifest)
    if store.read(name, MANIFEST, 0, len(manifest)) != manifest or any(store.size(name, f) != d.bytes for f, d in files.items()):
        raise NotWrittenError(f"{name} does not read back as it was written; nothing older was dropped")
    return {"path": store.path(name), "bytes": sum(d.bytes for d in files.values()), "left": _prune(store, task, name)}


def _prune(store: Store, task: Task, name: str) -> str:
    """Delete the checkpoints that are not kept beside `name`. Returns why some could not be deleted; the next save tries again."""
    try:
        every = [_judged(store, each) for each in store.names()]
        own = [each for each in every if each.lineage in ("", task.lineage)]  # "": version 0.1, or unreadable
        for old in to_delete(own, name, task.keep, task.keep_best):
            store.drop(old)
    except OSError as e:
        return f"an older checkpoint cannot be removed ({e})"
    return ""


def _await(store: Store, task: Task, folder: str, rank: int, lines: JsonLineReader) -> Digest:
    """The note of a rank, once it is written. Raises NotWrittenError when this rank is told to stop waiting."""
    note, wait_s = _note(task, rank), POLL_S
    while (size := store.size(folder, note)) is None or not size:
        told = lines.next(wait_s)
        if told is not None or lines.ended:
            raise NotWrittenError(told["abandon"] if told else "its rank is gone")
        wait_s = min(2 * wait_s, 50 * POLL_S)
    return Digest(**json.loads(store.read(folder, note, 0, size)))


def _note(task: Task, rank: int) -> str:
    return f"note-{rank:04d}.{task.job}.json"


def _judged(store: Store, name: str) -> RankedCheckpoint:
    """The ranking facts of a checkpoint; one that cannot be read ranks last."""
    try:
        return judged(name, read_document(store, name, read_manifest(store, name)))
    except (*ODD, DamagedError):
        return RankedCheckpoint(name, None, well=False)


def _save(store: Store, task: Task, memory: Memory, lines: JsonLineReader) -> Iterator[dict[str, Any]]:
    """Do one save; returns the message about it."""
    begin, folder = time.monotonic(), ""
    try:
        if task.rank == 0:
            store.sweep(task.job)
        folder, size = write_part(store, task, memory)
        yield {"part": size}
        if task.rank == 0:
            yield commit(store, task, folder, lines) | {"write_s": time.monotonic() - begin}
    except (OSError, NotWrittenError, ValueError) as e:
        if task.rank == 0:
            store.sweep("")
        yield {"problem": f"rank {task.rank}: {e}"}


def serve(lines: JsonLineReader, out: int, handle: int) -> None:
    """Do the saves that are requested, until the input is closed."""
    memory, stores = Memory(handle, 0, []), dict[str, Store]()
    while (line := lines.next(None)) is not None:
        if "pieces" in line:
            memory = Memory(handle, line["bytes"], line["pieces"])
        elif "abandon" not in line:
            task = Task(**line)
            try:
                store = stores.setdefault(task.where, open_store(task.where))
            except (ImportError, OSError, ValueError) as e:
                send(out, {"problem": f"rank {task.rank}: {task.where}: {e}"})
                continue
            for told in _save(store, task, memory, lines):
                send(out, told)


def main(handle: int) -> None:
    """Serve the rank that started this process, at a lower CPU priority."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # signals to stop are for the rank, which waits for its last save
    os.nice(10)
    serve(JsonLineReader(0), 1, handle)


if __name__ == "__main__":
    main(int(sys.argv[1]))
