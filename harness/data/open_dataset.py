"""Data on disk in the formats that people have, opened by what they are: one function for all of them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.config.errors import UserError
from harness.data.feed import Data
from harness.data.hf_rows import is_saved_dataset, open_hf, read_saved
from harness.data.json_lines import JsonLines
from harness.data.mds_shards import INDEX, MdsShards
from harness.data.parquet_files import open_parquet
from harness.data.record_files import SETTING
from harness.data.tar_shards import TarShards
from harness.data.workers import Batched, MapStyle

KINDS = (".parquet", ".jsonl", ".tar")
AT_ONCE = 1000
"""Samples that are read at once where all are read."""


def open_dataset(given: Any, columns: Sequence[str] | None = None, *, tensors: bool = True) -> Data:
    """Data on disk, or a Dataset of Hugging Face's in memory, as training data: any sample by its number, in the order of a run.

    `given`: a folder that `save_to_disk` wrote or of Mosaic's MDS; files that end in .parquet, .jsonl or .tar (WebDataset), by a
    folder, a path, a pattern, a range (`shard-{000..127}.tar`) or a list; or a Dataset. `columns`: these alone. Where all of them
    are numbers in Arrow or Parquet, batches are tensors [n, ...] by column; else, and without `tensors`, samples are dicts for
    `collate`. Raises UserError for what is missing, damaged or streamed, and names it.
    """
    if not isinstance(given, str | Path | list | tuple):
        return open_hf(given, columns, tensors=tensors)
    files = [str(part) for part in given] if isinstance(given, list | tuple) else str(given)
    if isinstance(files, str) and is_saved_dataset(Path(files)):
        return open_hf(read_saved(Path(files)), columns, tensors=tensors)
    if isinstance(files, str) and (Path(files) / INDEX).is_file():
        return MdsShards(Path(files), columns)
    kind = _kind(files)
    if kind == ".parquet":
        return open_parquet(files, columns, tensors=tensors)
    return JsonLines(files, columns) if kind == ".jsonl" else TarShards(files, columns)


def read_samples(given: Any, columns: Sequence[str] | None = None) -> Iterator[tuple[int, Any]]:
    """(number, sample) of all samples, front to back, by the batch. Raises UserError."""
    data = open_dataset(given, columns, tensors=False)
    assert isinstance(data, MapStyle)  # noqa: S101  tensors were not asked for
    for first in range(0, len(data), AT_ONCE):
        numbers = list(range(first, min(first + AT_ONCE, len(data))))
        rows = data.__getitems__(numbers) if isinstance(data, Batched) else [data[number] for number in numbers]
        yield from zip(numbers, rows, strict=True)


def is_table(files: str) -> bool:
    """Whether these are rows of columns, as .parquet files or a folder of save_to_disk hold."""
    path = Path(files)
    return path.suffix == ".parquet" or is_saved_dataset(path) or (path.is_dir() and any(path.glob("*.parquet")))


def _kind(files: str | list[str]) -> str:
    """How the files end. Raises UserError if it says no format."""
    names = [files] if isinstance(files, str) else files
    if not names:
        raise UserError(SETTING, "names no files", f"give some that end in {', '.join(KINDS)}")
    ends = {Path(name).suffix for name in names}
    if len(names) == 1 and Path(names[0]).is_dir():
        ends = {path.suffix for path in Path(names[0]).rglob("*") if path.suffix in KINDS}
    if len(ends) != 1 or not ends <= {*KINDS}:
        at = f"{names[0]!r} is of no format that is known" if len(ends) < 2 else f"{names[0]!r} holds files of several formats"
        raise UserError(SETTING, at, f"give files that end in {', '.join(KINDS)}, or a folder of save_to_disk or MDS")
    return ends.pop()
