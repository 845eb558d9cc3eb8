"""Data that gives any of its rows as one batch: tensors in memory (Table), or files that are read where a batch needs them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Protocol, final, runtime_checkable

from torch import Tensor


class Columns(ABC):
    """Rows by number, many at once, as tensors of the same first length: no Python per sample."""

    @abstractmethod
    def __len__(self) -> int:
        """How many rows there are."""

    @abstractmethod
    def take(self, indices: Tensor) -> dict[str, Tensor]:
        """The rows `indices` (int64 [n]) of every column, each [n, ...]."""

    @property
    @abstractmethod
    def row_bytes(self) -> int:
        """Bytes of one row over all columns."""

    @property
    def cheap(self) -> bool:
        """Whether any row can be read by itself; where it costs its neighbours, fewer are looked at before training."""
        return True

    def fingerprint(self) -> str | None:
        """Text that changes when the rows do, kept in checkpoints; None: a hash of some rows is used."""
        return None

    def source(self, index: int) -> str:
        """Where a row is stored, as text: a file and the position in it. Empty for rows in memory."""
        return ""

    def summary(self) -> str:
        """One line about this data, which a run prints as it starts; empty by default."""
        return ""


@runtime_checkable
class Sourced(Protocol):
    """Data that says where a sample lies, as Columns do; a data set that is read sample by sample may do so too."""

    def source(self, index: int, /) -> str: ...


@final
class Table(Columns):
    """A data set that is a few tensors in memory: a batch is one slice, no Python per sample.

    `columns`: tensors [samples, ...] by name, of any type. `summary`: one line that a run prints as it starts. Raises ValueError if
    they differ in their number of samples.
    """

    def __init__(self, columns: Mapping[str, Tensor], *, summary: str = "") -> None:
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"columns of a Table differ in length: {lengths}")
        self.columns, self._summary = dict(columns), summary

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def take(self, indices: Tensor) -> dict[str, Tensor]:
        """The rows `indices` (int64 [n]) of every column: tensors [n, ...] by name, on the column's device."""
        return {name: column.index_select(0, indices.to(column.device)) for name, column in self.columns.items()}

    @property
    def row_bytes(self) -> int:
        """See Columns.row_bytes."""
        return sum(column[:1].nbytes for column in self.columns.values())

    def summary(self) -> str:
        """See Columns.summary."""
        return self._summary
