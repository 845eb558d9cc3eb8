"""Parquet files as data: any row by its number, read with its row group, of which those used last are kept as tables.

Starting reads the files' footers alone. Reads are local in the order `blocks`; in `full` a sample may cost a row group.
"""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import xxhash
from torch import Tensor

from harness.config.errors import UserError
from harness.data.arrow_columns import SETTING, arrays, as_tensors, chosen, is_numeric, pyarrow
from harness.data.columns import Columns
from harness.data.record_files import file_paths
from harness.data.shuffles import Indices

CACHE_BYTES = 1 << 28
"""Of row groups so much is kept in each process, and the one in use at least."""
OPEN = 64
"""Files that are open at a time."""
_FOOTER = 8


class RowGroups:
    """The rows of several files, by number. Raises UserError, naming the file, where one is damaged, empty or of other columns."""

    def __init__(self, paths: Sequence[Path], columns: Sequence[str] | None, cache_bytes: int) -> None:
        self.paths, self._most = list(paths), cache_bytes
        self._files: OrderedDict[int, Any] = OrderedDict()
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self.schema: Any = None
        state = xxhash.xxh3_128()
        self._groups: list[tuple[int, int]] = []
        counts: list[int] = []
        for number, path in enumerate(self.paths):
            meta = self._open(number).metadata
            if not meta.num_rows:
                raise UserError(SETTING, f"{path} holds no rows", "leave it out")
            here = meta.schema.to_arrow_schema().remove_metadata()
            self.schema = here if self.schema is None else self.schema
            if not here.equals(self.schema):
                at = f"{path} has other columns than {self.paths[0]}"
                raise UserError(SETTING, at, "give files of one kind")
            self._groups += [(number, group) for group in range(meta.num_row_groups)]
            counts += [int(meta.row_group(group).num_rows) for group in range(meta.num_row_groups)]
            state.update(_footer(path))
        self.columns = chosen(self.schema, columns, str(self.paths[0]))
        self.first: Indices = np.cumsum([0, *counts])
        self.largest: int = max(counts)
        self.digest = f"{len(self)}:{xxhash.xxh3_128_hexdigest(state.digest() + ' '.join(self.columns).encode())}"

    def __len__(self) -> int:
        return int(self.first[-1])

    def table(self, rows: Indices) -> Any:
        """The rows as a table of Arrow, in their order."""
        pa = pyarrow()
        numbers = np.searchsorted(self.first, rows, side="right") - 1
        found = np.unique(numbers)
        places = [np.flatnonzero(numbers == number) for number in found]
        parts = [self._group(int(n)).take(pa.array(rows[at] - self.first[n])) for n, at in zip(found, places, strict=True)]
        if len(parts) == 1:
            return parts[0]
        return pa.concat_tables(parts).combine_chunks().take(pa.array(np.argsort(np.concatenate(places))))

    def source(self, index: int) -> str:
        """The file of a row, its row group and its number in that."""
        number = int(np.searchsorted(self.first, index, side="right")) - 1
        file, group = self._groups[number]
        return f"{self.paths[file]}, row group {group}, row {index - int(self.first[number])}"

    def _group(self, number: int) -> Any:
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number]
        file, group = self._groups[number]
        try:
            table = self._open(file).read_row_group(group, self.columns, use_threads=False).combine_chunks()
        except (OSError, ValueError) as e:
            raise _damaged(self.paths[file], f"row group {group}: {_first_line(e)}") from e
        self._kept[number] = table
        while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > self._most:
            self._kept.popitem(last=False)
        return table

    def _open(self, number: int) -> Any:
        """An open file; its handle is read by position, so that processes may share it. Raises UserError."""
        if number not in self._files:
            path = self.paths[number]
            try:
                self._files[number] = pyarrow().parquet.ParquetFile(path, memory_map=True, page_checksum_verification=True)
            except (OSError, ValueError) as e:
                raise _damaged(path, _first_line(e)) from e
            if len(self._files) > OPEN:
                self._files.popitem(last=False)
        return self._files[number]


@final
class ParquetRows(Columns):
    """Rows of Parquet files whose columns are numbers, or lists of them, equally long in all rows: many rows at once."""

    def __init__(self, groups: RowGroups) -> None:
        self._groups = groups
        row = self.take_arrays(np.zeros(1, np.int64))
        self._bytes = sum(int(column.nbytes) for column in row.values())

    def __len__(self) -> int:
        return len(self._groups)

    @property
    def row_bytes(self) -> int:
        """See Columns.row_bytes."""
        return self._bytes

    @property
    def cheap(self) -> bool:
        """See Columns.cheap: a row costs its row group."""
        return False

    def take_arrays(self, rows: Indices) -> dict[str, Any]:
        """See Columns.take."""
        return arrays(self._groups.table(rows), str(self._groups.paths[0].parent))

    def take(self, indices: Tensor) -> dict[str, Tensor]:
        """See Columns.take. Raises UserError for a damaged row group, missing values, or rows of unequal length."""
        return as_tensors(self.take_arrays(indices.numpy()))

    def fingerprint(self) -> str:
        """See Columns.fingerprint: of the files' footers, which tell of every column's size and range."""
        return self._groups.digest

    def source(self, index: int) -> str:
        """See Columns.source."""
        return self._groups.source(index)

    def summary(self) -> str:
        """See Columns.summary."""
        return _summary(self._groups)


@final
class ParquetSamples:
    """Rows of Parquet files with any columns: each a dict of Python's values; a batch is read at once."""

    def __init__(self, groups: RowGroups) -> None:
        self._groups = groups

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._groups.table(np.array(indices, np.int64)).to_pylist()
        return found

    def source(self, index: int) -> str:
        """Where a row lies."""
        return self._groups.source(index)


def open_parquet(
    files: str | Sequence[str], columns: Sequence[str] | None, *, tensors: bool, cache_bytes: int = CACHE_BYTES
) -> ParquetRows | ParquetSamples:
    """The rows of Parquet files: as tensors where all of `columns` are numbers and `tensors` are asked for, else as dicts.

    Raises UserError.
    """
    groups = RowGroups(file_paths(files, ".parquet"), columns, cache_bytes)
    numeric = tensors and all(is_numeric(groups.schema.field(name).type) for name in groups.columns)
    return ParquetRows(groups) if numeric else ParquetSamples(groups)


def _footer(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-_FOOTER, 2)
        size = int.from_bytes(file.read(4), "little") + _FOOTER
        file.seek(-size, 2)
        return file.read(size)


def _summary(groups: RowGroups) -> str:
    text = f"{len(groups):,} rows in {len(groups.first) - 1:,} row groups of at most {groups.largest:,}"
    return f"{text}: data.order: blocks with data.block: {groups.largest} reads each of them once an epoch"


def _damaged(path: Path, why: str) -> UserError:
    return UserError(SETTING, f"{path} cannot be read ({why})", "write it again, or leave it out")


def _first_line(e: Exception) -> str:
    return (str(e).strip().splitlines() or [type(e).__name__])[0]
