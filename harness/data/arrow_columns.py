"""Columns of Arrow tables as tensors, without Python per row; and what is said where pyarrow or datasets are not installed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.config.errors import UserError

SETTING = "recipe.data"


def pyarrow() -> Any:
    """The library, with its parquet. Raises UserError if it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as e:
        raise UserError(SETTING, f"Arrow, Parquet and compressed shards need pyarrow ({e})", "pip install 'widebatch[data]'") from e
    return pyarrow


def hf_datasets() -> Any:
    """Hugging Face's datasets. Raises UserError if it is not installed."""
    try:
        import datasets
    except ImportError as e:
        raise UserError(SETTING, f"a saved dataset needs datasets ({e})", "pip install 'widebatch[data]'") from e
    return datasets


def chosen(schema: Any, columns: Sequence[str] | None, where: str) -> list[str]:
    """The names of the columns that are asked for; None: all. Raises UserError for one that is not there."""
    odd = next((name for name in columns or () if name not in schema.names), None)
    if odd is not None:
        raise UserError(SETTING, f"{where} has no column {odd!r}", f"it has {', '.join(schema.names)}")
    return list(columns or schema.names)


def is_numeric(kind: Any) -> bool:
    """Whether a column of this Arrow type may be a tensor: numbers, and lists of them."""
    pa = pyarrow()
    if isinstance(kind, pa.ExtensionType):
        return is_numeric(kind.storage_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return is_numeric(kind.value_type)
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def arrays(table: Any, where: str) -> dict[str, NDArray[Any]]:
    """The columns of a table of numbers: [rows, ...] by name. Raises UserError for missing values, or rows of unequal length."""
    return {name: _array(table.column(name).combine_chunks(), f"{where}: column {name}") for name in table.column_names}


def as_tensors(columns: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    """As torch takes them: unsigned numbers as the next wider signed ones (uint8 stays)."""
    wider = {np.dtype(np.uint16): np.int32, np.dtype(np.uint32): np.int64, np.dtype(np.uint64): np.int64}
    return {name: torch.from_numpy(np.array(c, wider.get(c.dtype, c.dtype), order="C")) for name, c in columns.items()}


def _array(column: Any, where: str) -> NDArray[Any]:
    pa = pyarrow()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if isinstance(column.type, pa.ExtensionType):
        column = column.storage
    if column.null_count:
        raise UserError(SETTING, f"{where} lacks {column.null_count:,} values", "fill them, or leave the rows out beforehand")
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type) or pa.types.is_fixed_size_list(column.type)):
        found: NDArray[Any] = column.to_numpy(zero_copy_only=False)
        return found
    values = _array(column.flatten(), where)
    if pa.types.is_fixed_size_list(column.type):
        return values.reshape(len(column), column.type.list_size, *values.shape[1:])
    lengths = np.diff(column.offsets.to_numpy())
    if len(lengths) and lengths.min() != lengths.max():
        at = f"{where} has rows of {lengths.min():,} to {lengths.max():,} numbers, and a batch is one tensor"
        raise UserError(SETTING, at, "make them equally long, or leave the column out")
    return values.reshape(len(column), int(lengths[0]) if len(lengths) else 0, *values.shape[1:])
