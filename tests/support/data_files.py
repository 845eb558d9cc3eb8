"""The same small table in every format that open_dataset reads, for tests of what reads it."""

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROWS = 50
X = np.arange(ROWS) / 8
LABEL = np.arange(ROWS) % 7
TEXT = [f"row {n} " + "ü" * (n % 5) for n in range(ROWS)]
PARTS = (0, 20, 21, 50)
"""Rows of each file."""


def parquet(folder: Path, parts: Sequence[int] = PARTS) -> str:
    """Three files with row groups of eight rows."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    for number, (a, b) in enumerate(pairwise(parts)):
        table = pa.table({"x": X[a:b], "label": LABEL[a:b], "pair": [[n, n + 1] for n in range(a, b)], "text": TEXT[a:b]})
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=8)
    return str(folder / "*.parquet")


def saved(folder: Path) -> str:
    """What save_to_disk() writes, in three shards."""
    datasets = pytest.importorskip("datasets")
    rows = {"x": X, "label": LABEL, "pair": [[n, n + 1] for n in range(ROWS)], "text": TEXT}
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(rows).save_to_disk(folder / "saved", num_shards=3)
    return str(folder / "saved")


def lines(folder: Path) -> str:
    """JSON lines, with empty ones among them, and no end of line at the end of a file."""
    for number, (a, b) in enumerate(pairwise(PARTS)):
        rows = [json.dumps({"x": X[n], "label": int(LABEL[n]), "pair": [n, n + 1], "text": TEXT[n]}) for n in range(a, b)]
        (folder / f"{number}.jsonl").write_text("\n\r\n" + "\n\n".join(rows), encoding="utf-8")
    return str(folder)


def tars(folder: Path) -> str:
    """WebDataset shards, with a folder and files of other samples' names in them."""
    for number, (a, b) in enumerate(pairwise(PARTS)):
        with tarfile.open(folder / f"shard-{number:03}.tar", "w") as tar:
            tar.addfile(tarfile.TarInfo("part"))
            for n in range(a, b):
                pair = io.BytesIO()
                np.save(pair, np.array([n, n + 1]))
                parts: dict[str, Any] = {
                    "x.json": json.dumps(X[n]),
                    "label.cls": str(LABEL[n]),
                    "pair.npy": pair.getvalue(),
                    "text.txt": TEXT[n],
                }
                for kind, data in parts.items():
                    raw = data if isinstance(data, bytes) else data.encode()
                    member = tarfile.TarInfo(f"part/{n:06}.{kind}")
                    member.size = len(raw)
                    tar.addfile(member, io.BytesIO(raw))
    return str(folder / "shard-{000..002}.tar")


def mds(folder: Path) -> str:
    """Mosaic's format: offsets, the columns' encodings, and the samples, whose sizes stand first where they vary."""
    names, encodings, sizes = ["label", "pair", "text", "x"], ["int", "ndarray", "str", "float64"], [8, None, None, 8]
    shards = []
    for number, (a, b) in enumerate(pairwise(PARTS)):
        samples = []
        for n in range(a, b):
            pair = bytes([65, 1 << 2, 2]) + np.array([n, n + 1], np.int64).tobytes()
            values = [np.int64(LABEL[n]).tobytes(), pair, TEXT[n].encode(), np.float64(X[n]).tobytes()]
            samples.append(np.array([len(values[1]), len(values[2])], np.uint32).tobytes() + b"".join(values))
        config = json.dumps({"column_names": names}).encode()
        offsets = np.cumsum([0, *map(len, samples)]) + 4 + 4 * (len(samples) + 1) + len(config)
        data = np.uint32(len(samples)).tobytes() + offsets.astype(np.uint32).tobytes() + config + b"".join(samples)
        (folder / f"shard.{number:05}.mds").write_bytes(data)
        raw = {"basename": f"shard.{number:05}.mds", "bytes": len(data), "hashes": {}}
        columns = {"column_names": names, "column_encodings": encodings, "column_sizes": sizes}
        shards.append(
            {"version": 2, "format": "mds", "samples": b - a, "raw_data": raw, "zip_data": None, "compression": None} | columns
        )
    shards.insert(1, shards[0] | {"samples": 0})  # as the writer of Mosaic's leaves them
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))
    return str(folder)


KINDS: dict[str, Callable[[Path], str]] = {"parquet": parquet, "saved": saved, "lines": lines, "tars": tars, "mds": mds}
NAMES = {"tars": ["x.json", "label.cls", "pair.npy", "text.txt"]}


def column(sample: Any, name: str) -> Any:
    """A value of a sample, whatever its key's ending."""
    return next(value for key, value in sample.items() if key.partition(".")[0] == name)
