"""`data.order: blocks` beside `full` on a file that is larger than the memory given to it, and whether it shuffles as well.

`python -m tests.bench.blocks`, as root where there are memory cgroups, writes configs/results/blocks.json. A process with at most
LIMIT_MB of memory, page cache included, reads SAMPLES rows of a file of tokens of FILE_MB that no cache holds, in each order. Told
of 1,000 samples: major page faults, MB from the disk, and the blocks that they lie in.

The shuffle: softmax regression on 40,000 points that lie sorted by class, or in runs of 8 of a class, one epoch of batches of 64,
with each of SEEDS seeds, in the order full, blocks (of 64, windows of 64: a tenth of the data), and that of the data. Of 20 parts
of the epoch the mean loss is compared: the largest difference from full in standard errors of the two means (with so many parts
about 3 is chance), and the mean accuracy at the end.
"""

import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from harness.config.schema import DataConfig
from harness.data.feed import Feed
from harness.data.sample_order import Order, step_shards
from harness.data.shuffles import BlockShuffle
from harness.data.token_files import TokenFiles
from tests.bench.peers.__main__ import machine
from tests.support.processes import ROOT, environ

OUT = ROOT / "configs" / "results" / "blocks.json"
FILE_MB, LIMIT_MB, CONTEXT, SAMPLES, BATCH = 1024, 384, 1024, 120_000, 64
POINTS, CLASSES, PARTS, SEEDS = 40_000, 10, 20, 12
RUNS = POINTS // CLASSES, 8
BLOCK, WINDOW = DataConfig().block, DataConfig().window
GROUPS = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
"""Where memory cgroups are, of version 1 and 2."""


@contextlib.contextmanager
def limited() -> Iterator[Path]:
    """The file that takes the ids of processes that share LIMIT_MB."""
    root = next(path for path in GROUPS if path.is_dir())
    group = root / f"widebatch_{os.getpid()}"
    group.mkdir()
    try:
        (group / ("memory.limit_in_bytes" if root == GROUPS[0] else "memory.max")).write_text(str(LIMIT_MB << 20))
        yield group / "cgroup.procs"
    finally:
        group.rmdir()


def order_of(n: int, kind: str, seed: int, block: int = BLOCK, window: int = WINDOW) -> Order:
    """The order of a run."""
    return Order(n, seed, BlockShuffle(n, block, window) if kind == "blocks" else None)


def read(path: str, kind: str) -> None:
    """Read in an order, and print what it cost."""
    data = TokenFiles(path, CONTEXT)
    feed = Feed(data, order=order_of(len(data), kind, 0), device=torch.device("cpu"), dtype=None)
    begun, faults, disk = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_majflt, from_disk()
    for _ in feed.steps(step_shards(0, SAMPLES, BATCH, BATCH, 1, 0, 1)):
        pass
    faults, disk = resource.getrusage(resource.RUSAGE_SELF).ru_majflt - faults, from_disk() - disk
    print(json.dumps({"faults": faults, "disk": disk, "seconds": time.perf_counter() - begun}))


def from_disk() -> int:
    """Bytes that this process has had read from the disk."""
    return int(Path("/proc/self/io").read_text().partition("read_bytes: ")[2].split()[0])


def cost(path: Path, kind: str) -> dict[str, Any]:
    """One reading by a process of its own, of a file that is in no cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with limited() as procs:
        enter = f"echo $$ > {procs} && exec {sys.executable} -m tests.bench.blocks {path} {kind}"
        told = subprocess.run(["sh", "-c", enter], cwd=ROOT, env=environ(), check=True, capture_output=True, text=True).stdout
    found = json.loads(told)
    thousands = SAMPLES / 1000
    ids = order_of(FILE_MB * 512 * 1024 // CONTEXT, kind, 0).take(0, SAMPLES // 1000 * 1000).reshape(-1, 1000)
    return {
        "order": kind,
        "faults": round(found["faults"] / thousands),
        "disk_mb": round(found["disk"] / 2**20 / thousands, 2),
        "blocks": round(float(np.mean([len(np.unique(part // BLOCK)) for part in ids]))),
        "samples_per_s": round(SAMPLES / found["seconds"]),
    }


def curve(x: torch.Tensor, y: torch.Tensor, ids: NDArray[np.int64]) -> tuple[list[float], float]:
    """(the mean loss of each part of an epoch of softmax regression in this order, the accuracy after it in percent)."""
    weights = torch.zeros(x.shape[1], CLASSES)
    losses = []
    for batch in torch.split(torch.from_numpy(ids), BATCH):
        log_p = torch.log_softmax(x[batch] @ weights, 1)
        losses.append(-log_p.gather(1, y[batch, None]).mean().item())
        error = log_p.exp()
        error[torch.arange(len(batch)), y[batch]] -= 1
        weights -= 0.05 * x[batch].T @ error / len(batch)
    right = ((x @ weights).argmax(1) == y).float().mean().item()
    return [float(np.mean(part)) for part in np.array_split(losses, PARTS)], 100 * right


def shuffles(run: int) -> list[dict[str, Any]]:
    """How far the loss curve of each order is from that of full, on data with runs of so many points of a class."""
    generator = torch.Generator().manual_seed(0)
    y = (torch.randperm(POINTS // run, generator=generator) % CLASSES).repeat_interleave(run)
    x = torch.randn(CLASSES, 32, generator=generator)[y] + 3 * torch.randn(POINTS, 32, generator=generator)
    orders = {
        "full": [order_of(POINTS, "full", seed).take(0, POINTS) for seed in range(SEEDS)],
        "full, other seeds": [order_of(POINTS, "full", SEEDS + seed).take(0, POINTS) for seed in range(SEEDS)],
        "blocks": [order_of(POINTS, "blocks", seed, 64, WINDOW).take(0, POINTS) for seed in range(SEEDS)],
        "as the data lie": [np.arange(POINTS)] * SEEDS,
    }
    runs = {kind: [curve(x, y, ids) for ids in found] for kind, found in orders.items()}
    curves = {kind: np.array([losses for losses, _ in found]) for kind, found in runs.items()}
    rows = []
    for kind, found in curves.items():
        spread = np.sqrt((curves["full"].var(0, ddof=1) + found.var(0, ddof=1)) / SEEDS)
        apart = float(np.max(np.abs(found.mean(0) - curves["full"].mean(0)) / spread))
        rows.append(
            {
                "run": run,
                "order": kind,
                "largest_difference_se": round(apart, 2),
                "accuracy_pct": round(float(np.mean([a for _, a in runs[kind]])), 2),
            }
        )
    return rows


def table(record: dict[str, Any]) -> str:
    """The READMEs' tables of a record."""
    lines = ["| order | page faults from disk | MB from disk | blocks | samples/s |", "|---|---|---|---|---|"]
    reads = record["reads"]
    lines += [f"| {r['order']} | {r['faults']} | {r['disk_mb']} | {r['blocks']} | {r['samples_per_s']} |" for r in reads]
    lines += [
        "",
        "| points of a class in a run | order | largest difference from full, standard errors | accuracy, % |",
        "|---|---|---|---|",
    ]
    lines += [f"| {r['run']:,} | {r['order']} | {r['largest_difference_se']} | {r['accuracy_pct']} |" for r in record["shuffles"]]
    return "\n".join(lines)


def main() -> None:
    """Measure and write the record."""
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        read(sys.argv[1], sys.argv[2])
        return
    told = [row for run in RUNS for row in shuffles(run)]
    print(told, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokens.bin"
        random = np.random.default_rng(0)
        with path.open("wb") as out:
            for _ in range(FILE_MB // 16):
                out.write(random.integers(0, 50_000, 1 << 23, np.uint16).tobytes())
            os.fsync(out.fileno())
        reads = [cost(path, kind) for kind in ("full", "blocks")]
    print(reads, flush=True)
    record = {
        "command": "python -m tests.bench.blocks",
        "machine": machine(),
        "file_mb": FILE_MB,
        "limit_mb": LIMIT_MB,
        "samples": SAMPLES,
        "reads": reads,
        "shuffles": told,
    }
    OUT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
