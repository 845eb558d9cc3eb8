"""Small checkpoints made by the writer's own functions, and seeded damage to them. For tests alone."""

import json
import os
import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from harness.checkpoint.json_pipe import JsonLineReader
from harness.checkpoint.safetensors_io import lay_out
from harness.checkpoint.storage import Store, open_store
from harness.checkpoint.train_state import State
from harness.checkpoint.writer_process import Memory, Task, commit, write_part

DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "uint16": "BF16", "int64": "I64", "uint8": "U8"}
"""numpy's type by its name, and what it stands for in a file; numpy has no bfloat16, so its bits are given."""
RANKS = 2


def memory_of(arrays: Mapping[str, np.ndarray], rank: int = 0, ranks: int = 1) -> Memory:
    """The writer's view of shared memory that holds a rank's half of each array."""
    pieces, data = [], []
    for name, array in arrays.items():
        flat = array.reshape(-1)
        first, last = len(flat) * rank // ranks, len(flat) * (rank + 1) // ranks
        if last > first:
            pieces.append((name, array.shape, first, last - first, DTYPES[str(array.dtype)]))
            data.append(flat[first:last])
    handle = os.memfd_create("test")
    entries = {(e.name, e.start): e for e in lay_out(pieces)}
    for piece, part in zip(pieces, data, strict=True):
        os.pwrite(handle, part.tobytes(), entries[piece[0], piece[2]].first)
    return Memory(handle, max(e.last for e in entries.values()), pieces)


def arrays_of(seed: int, elements: int = 300) -> dict[str, np.ndarray]:
    """Weights and moments of a small model."""
    rng = np.random.default_rng(seed)
    return {
        "model/weight": rng.standard_normal((elements // 3, 3), dtype=np.float32),
        "model/half": rng.integers(0, 0x7F80, (7,), dtype=np.uint16),
        "optimizer/weight/exp_avg": rng.standard_normal((elements // 3, 3), dtype=np.float32),
        "optimizer/weight/step": np.array(float(seed)),
    }


def task_of(where: str, samples: int, rank: int = 0, ranks: int = RANKS, keep: int = 2, score: float | None = None) -> Task:
    """One rank's order to save at `samples`."""
    state = json.dumps({"state": State(step=samples, samples=samples).to_json(), "about": {"score": score, "well": True}})
    return Task(where, samples, f"test-{samples}", rank, ranks, state, keep, 0)


def save(where: str, samples: int, keep: int = 2, store: Store | None = None, seed: int | None = None, elements: int = 300) -> None:
    """One committed checkpoint of RANKS ranks, as their writers write it one after another, rank 0 last."""
    store = store or open_store(where)
    nobody = JsonLineReader(os.open("/dev/null", os.O_RDONLY))
    nobody.ended = True
    for rank in reversed(range(RANKS)):
        task = task_of(where, samples, rank, keep=keep)
        store.sweep(task.job)
        folder, _ = write_part(store, task, memory_of(arrays_of(samples if seed is None else seed, elements), rank, RANKS))
        if rank == 0:
            commit(store, task, folder, nobody)


def damage(folder: Path, rng: random.Random) -> str:
    """Damage one file of a checkpoint: flip a bit, cut it, zero or reverse a run of bytes, delete it. What was done, in words."""
    while True:
        path = folder / rng.choice(sorted(p.name for p in folder.iterdir()))
        data = bytearray(path.read_bytes())
        kind, at = rng.choice(("flip", "cut", "zeros", "swap", "gone")), rng.randrange(len(data))
        length = min(rng.choice((1, 16, 512, 4096)), len(data) - at)
        before = bytes(data)
        if kind == "flip":
            data[at] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del data[at:]
        elif kind == "zeros":
            data[at : at + length] = bytes(length)
        elif kind == "swap":
            data[at : at + length] = data[at : at + length][::-1]
        if kind == "gone":
            path.unlink()
        elif bytes(data) == before:
            continue  # zeros on zeros: nothing was damaged
        else:
            path.write_bytes(data)
        return f"{kind} at {at} of {path.name}"
