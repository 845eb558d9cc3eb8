"""Samples a second of each kind of data beside the loader of its own library, in one thread, as ratios.

`python -m tests.bench.sources` writes configs/results/sources.json. Both read the same files in a shuffled order, in batches of 64,
in turns, start included, BATCHES of them or for LONGEST_S; the ratio is the median over the rounds of ours to theirs. Libraries
that are not installed (extra: webdataset, mosaicml-streaming) are left out.
"""

import importlib
import io
import json
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from harness.data.feed import Data, Feed
from harness.data.open_dataset import open_dataset
from harness.data.sample_order import Order, step_shards
from harness.data.shuffles import BlockShuffle
from harness.data.token_files import TokenFiles
from tests.bench.peers.__main__ import machine
from tests.support.processes import ROOT

OUT = ROOT / "configs" / "results" / "sources.json"
ROUNDS, BATCH, BATCHES, LONGEST_S = 5, 64, 513, 4.0
ROWS, CONTEXT = 50_000, 256
Loader = Callable[[], Iterator[Any]]


def feed(data: Data, *, blocks: bool = False) -> Loader:
    """Batches as a run gets them, from its start."""

    def begin() -> Iterator[Any]:
        order = Order(len(data), 0, BlockShuffle(len(data), 1024, 8) if blocks else None)
        shards = step_shards(0, 1 << 40, BATCH, BATCH, 1, 0, 1)
        return Feed(data, order=order, device=torch.device("cpu"), dtype=None).steps(shards)

    return begin


def tokens(folder: Path) -> tuple[Loader, Loader]:
    """A raw .bin, beside nanoGPT's get_batch (train.py): inputs and targets as int64."""
    path = folder / "tokens.bin"
    np.random.default_rng(0).integers(0, 50257, ROWS * CONTEXT, np.uint16).tofile(path)
    steps = feed(TokenFiles(str(path), CONTEXT))

    def ours() -> Iterator[Any]:
        for _, (micro,) in steps():
            whole = micro.batch["tokens"].long()
            yield whole[:, :-1], whole[:, 1:]

    def theirs() -> Iterator[Any]:
        while True:
            data = np.memmap(path, np.uint16, "r")
            starts = torch.randint(len(data) - CONTEXT, (BATCH,)).tolist()
            x = torch.stack([torch.from_numpy(data[i : i + CONTEXT].astype(np.int64)) for i in starts])
            yield x, torch.stack([torch.from_numpy(data[i + 1 : i + 1 + CONTEXT].astype(np.int64)) for i in starts])

    return ours, theirs


def saved(folder: Path) -> tuple[Loader, Loader]:
    """A folder of save_to_disk, beside torch's DataLoader on the dataset in its format `torch`."""
    datasets = importlib.import_module("datasets")
    datasets.disable_progress_bars()
    x = np.random.default_rng(0).random((ROWS, 16), np.float32)
    datasets.Dataset.from_dict({"x": x, "y": np.arange(ROWS)}).save_to_disk(folder / "saved")
    theirs = datasets.load_from_disk(str(folder / "saved")).with_format("torch")
    return feed(open_dataset(str(folder / "saved"))), lambda: iter(DataLoader(theirs, BATCH, shuffle=True))


def parquet(folder: Path) -> tuple[Loader, Loader]:
    """Parquet in the order of blocks, beside datasets' stream of it with a buffer in which it shuffles."""
    datasets = importlib.import_module("datasets")
    path = str(folder / "rows.parquet")
    x = np.random.default_rng(0).random((ROWS, 16), np.float32)
    datasets.Dataset.from_dict({"x": x, "y": np.arange(ROWS)}).to_parquet(path, batch_size=1024)
    stream = datasets.load_dataset("parquet", data_files=path, split="train", streaming=True, cache_dir=str(folder))
    shuffled = stream.shuffle(seed=0, buffer_size=8192).with_format("torch")
    return feed(open_dataset(path), blocks=True), lambda: iter(DataLoader(shuffled, BATCH))


def tars(folder: Path) -> tuple[Loader, Loader]:
    """Tars of small arrays, beside webdataset's pipeline with its buffer."""
    for shard in range(8):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for n in range(2000):
                raw = io.BytesIO()
                np.save(raw, np.arange(16) + n)
                member = tarfile.TarInfo(f"{shard}-{n:06}.npy")
                member.size = raw.tell()
                raw.seek(0)
                tar.addfile(member, raw)
    wds = importlib.import_module("webdataset")
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    pipeline = wds.WebDataset(urls, shardshuffle=8).shuffle(1000).decode().to_tuple("npy").batched(BATCH).repeat()
    return feed(open_dataset(str(folder))), lambda: iter(pipeline)


def mds(folder: Path) -> tuple[Loader, Loader]:
    """A folder of MDS of the same arrays, beside Mosaic's streaming, which reads it in place."""
    streaming = importlib.import_module("streaming")
    place = str(folder / "mds")
    with streaming.MDSWriter(out=place, columns={"x": "ndarray:int64:16"}, size_limit=1 << 20) as out:
        for n in range(16_000):
            out.write({"x": np.arange(16) + n})
    theirs = streaming.StreamingDataset(local=place, shuffle=True, batch_size=BATCH)
    return feed(open_dataset(place)), lambda: iter(DataLoader(theirs, BATCH))


KINDS: dict[str, tuple[str, str | None, Callable[[Path], tuple[Loader, Loader]]]] = {
    "tokens": ("nanoGPT's get_batch", None, tokens),
    "saved dataset": ("datasets, DataLoader", "datasets", saved),
    "parquet, blocks": ("datasets, streamed with a buffer", "datasets", parquet),
    "tars": ("webdataset, with a buffer", "webdataset", tars),
    "MDS": ("Mosaic's streaming, DataLoader", "streaming", mds),
}


def speed(loader: Loader) -> float:
    """Samples a second."""
    begin, count, took = time.perf_counter(), 0, 0.0
    for _ in islice(loader(), BATCHES):
        count, took = count + 1, time.perf_counter() - begin
        if took > LONGEST_S:
            break
    return BATCH * count / took


def table(record: dict[str, Any]) -> str:
    """The READMEs' table of a record."""
    lines = ["| data | beside | samples/s, ours to theirs (lowest, highest round) |", "|---|---|---|"]
    lines += [f"| {r['data']} | {r['beside']} | {r['ratio']:.2f} ({r['lowest']:.2f}-{r['highest']:.2f}) |" for r in record["rows"]]
    return "\n".join(lines)


def main() -> None:
    """Measure and write the record."""
    torch.set_num_threads(1)
    rows = []
    for kind, (beside, library, make) in KINDS.items():
        if library is not None and find_spec(library) is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            ours, theirs = make(Path(folder))
            found = [(speed(ours), speed(theirs)) for _ in range(ROUNDS + 1)][1:]
        mine, other = (round(statistics.median(each)) for each in zip(*found, strict=True))
        ratios = sorted(a / b for a, b in found)
        row = {"data": kind, "beside": beside, "samples_per_s": mine, "theirs_per_s": other}
        rows.append(
            row | {"ratio": round(statistics.median(ratios), 2), "lowest": round(ratios[0], 2), "highest": round(ratios[-1], 2)}
        )
        print(rows[-1], flush=True)
    record = {"command": "python -m tests.bench.sources", "machine": machine(), "rounds": ROUNDS, "batch": BATCH, "rows": rows}
    OUT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
