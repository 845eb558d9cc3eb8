"""Files of JSON lines as data: any line by its number, found by an index that is made once beside each file."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import orjson
from numpy.typing import NDArray

from harness.config.errors import UserError
from harness.data.file_index import read_index, write_index
from harness.data.record_files import SETTING, RecordFiles, file_paths

KIND = "lines"
BLOCK = 1 << 24
"""Bytes that are looked through at once for ends of lines."""


@final
class JsonLines(RecordFiles):
    """The values of lines that are not empty; of `columns`, if given, each an object with these keys alone."""

    def __init__(self, files: str | Sequence[str], columns: Sequence[str] | None = None) -> None:
        """Raises UserError for a missing or empty file, and an index of another file."""
        paths = file_paths(files, ".jsonl")
        self._columns = columns
        self._starts = [_starts(path) for path in paths]
        super().__init__(paths, [len(starts) - 1 for starts in self._starts])

    def sample(self, file: int, row: int) -> Any:
        """See RecordFiles.sample."""
        start, stop = self._starts[file][row : row + 2].tolist()
        try:
            value = orjson.loads(self.read(file, start, stop - start))
        except orjson.JSONDecodeError as e:
            raise ValueError(f"{self.paths[file]}, byte {start:,}: the line is not JSON ({e})") from e
        if self._columns is None:
            return value
        lacks = [name for name in self._columns if not isinstance(value, dict) or name not in value]
        if lacks:
            raise ValueError(f"{self.paths[file]}, byte {start:,}: the line has no {lacks[0]!r}")
        return {name: value[name] for name in self._columns}


def _starts(path: Path) -> NDArray[np.int64]:
    """Where lines that are not empty begin, and the end of the file: int64 [lines + 1], mapped. Raises UserError."""
    try:
        found = read_index(path, KIND)
        if found is None:
            write_index(path, KIND, _scanned(path), {})
            found = read_index(path, KIND)
    except OSError as e:
        raise UserError(SETTING, f"{path} cannot be read ({e.strerror})", "give a file that can") from e
    assert found is not None  # noqa: S101  it was written
    return found[1]


def _scanned(path: Path) -> Iterator[NDArray[np.int64]]:
    """Where lines begin that are more than their end, in order, and the end of the file."""
    begin = offset = 0
    last = 10
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            bytes_ = np.frombuffer(block, np.uint8)
            found = np.flatnonzero(bytes_ == 10)
            before = np.where(found > 0, bytes_[found - 1], last)  # the byte before each end of a line
            ends = found.astype(np.int64) + offset
            starts = np.concatenate([np.array([begin], np.int64), ends + 1])[: len(ends)]
            yield starts[(ends - starts > 1) | ((ends > starts) & (before != 13))]
            begin = int(ends[-1]) + 1 if len(ends) else begin
            offset, last = offset + len(block), block[-1]
    rest = offset - begin
    yield np.array([begin, offset] if rest > 1 or (rest and last != 13) else [offset], np.int64)
