"""WebDataset tars as data: any sample by its number. An index beside each tar says where the files of a sample lie."""

import io
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import orjson
from numpy.typing import NDArray

from harness.config.errors import UserError
from harness.data.file_index import read_index, write_index
from harness.data.record_files import SETTING, RecordFiles, file_paths

KIND = "tar"
AT_ONCE = 4096
_FIELDS = 4
"""Of each file: the sample that it is of, its kind, its first byte, its size."""


@final
class TarShards(RecordFiles):
    """A sample is the files that lie beside one another and have one name up to its first dot: a dict of their endings.

    Values by their ending: txt is text, cls a number, json and npy what they hold, anything else bytes. `columns`: these alone.
    """

    def __init__(self, files: str | Sequence[str], columns: Sequence[str] | None = None) -> None:
        """Raises UserError for a shard that is missing, damaged or empty, and an index of another file."""
        paths = file_paths(files, ".tar")
        found = [_index(path) for path in paths]
        self._columns = columns
        self._kinds = [head["kinds"] for head, _ in found]
        self._members = [numbers.reshape(-1, _FIELDS) for _, numbers in found]
        super().__init__(paths, [head["samples"] for head, _ in found])

    def sample(self, file: int, row: int) -> dict[str, Any]:
        """See RecordFiles.sample."""
        members, kinds = self._members[file], self._kinds[file]
        first, past = np.searchsorted(members[:, 0], [row, row + 1]).tolist()
        here = {kinds[kind]: (start, size) for _, kind, start, size in members[first:past].tolist()}
        lacks = [name for name in self._columns or () if name not in here]
        if lacks:
            raise ValueError(f"{self.paths[file]}, sample {row} has no {lacks[0]!r}, and has {', '.join(here)}")
        wanted = self._columns or here
        return {name: _value(name, self.read(file, *here[name]), f"{self.paths[file]}, sample {row}") for name in wanted}


def _value(name: str, data: bytes, where: str) -> Any:
    kind = name.rpartition(".")[2].lower()
    try:
        if kind == "json":
            return orjson.loads(data)
        if kind == "npy":
            return np.load(io.BytesIO(data), allow_pickle=False)
        return int(data) if kind == "cls" else data.decode() if kind == "txt" else data
    except ValueError as e:
        raise ValueError(f"{where}: {name} cannot be read ({e})") from e


def _index(path: Path) -> tuple[dict[str, Any], NDArray[np.int64]]:
    """Raises UserError if a tar is damaged."""
    try:
        found = read_index(path, KIND)
        if found is None:
            said: dict[str, Any] = {"kinds": [], "samples": 0}
            write_index(path, KIND, _scanned(path, said), said)
            found = read_index(path, KIND)
    except (OSError, tarfile.TarError) as e:
        raise UserError(SETTING, f"{path} cannot be read as a tar ({e})", "bring it back whole, or leave it out") from e
    assert found is not None  # noqa: S101  it was written
    return found


def _scanned(path: Path, said: dict[str, Any]) -> Iterator[NDArray[np.int64]]:
    """The files of a tar, some at a time; `said` tells of all of them at the end. Raises TarError where one is cut off."""
    kinds: dict[str, int] = {}
    rows: list[tuple[int, int, int, int]] = []
    last, sample, size = None, -1, path.stat().st_size
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            folder, _, name = member.name.rpartition("/")
            key, dot, kind = name.partition(".")
            if not member.isfile() or not dot or not key:
                continue
            if member.offset_data + member.size > size:
                raise tarfile.ReadError(f"{member.name} is cut off")
            if (folder, key) != last:
                last, sample = (folder, key), sample + 1
            rows.append((sample, kinds.setdefault(kind, len(kinds)), member.offset_data, member.size))
            if len(rows) == AT_ONCE:
                yield np.array(rows, np.int64)
                rows = []
        end = tar.offset  # where the next header would be: one that is cut off counts as the end
    with path.open("rb") as file:
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("its end is missing: it is cut off")
    said |= {"kinds": list(kinds), "samples": sample + 1}
    yield np.array(rows, np.int64)
