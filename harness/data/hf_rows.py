"""Hugging Face datasets as data, on disk (`save_to_disk`) and in memory: read by the batch, as tensors where that can be."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

from torch import Tensor

from harness.config.errors import UserError
from harness.data.arrow_columns import SETTING, arrays, as_tensors, chosen, hf_datasets, is_numeric
from harness.data.columns import Columns
from harness.data.feed import Data, MapStyle

STATE, PARTS = "state.json", "dataset_dict.json"
"""What save_to_disk() writes beside the shards of a dataset, and beside the folders of a dict of them."""
END = b"\xff\xff\xff\xff\0\0\0\0"
"""How a stream of Arrow ends."""


@final
class DatasetRows(Columns):
    """Columns of a dataset that are numbers, or lists of them, equally long in all rows. A batch's rows alone are copied."""

    def __init__(self, dataset: Any, columns: Sequence[str]) -> None:
        self._dataset, self._where = dataset, "the dataset"
        self._view = dataset.with_format("arrow", columns=list(columns))
        self._bytes = sum(column.nbytes for column in arrays(self._view[[0]], self._where).values())

    def __len__(self) -> int:
        return len(self._dataset)

    @property
    def row_bytes(self) -> int:
        """See Columns.row_bytes."""
        return self._bytes

    def take(self, indices: Tensor) -> dict[str, Tensor]:
        """See Columns.take. Raises UserError for missing values, or rows of unequal length."""
        return as_tensors(arrays(self._view[indices.tolist()], self._where))


def open_hf(dataset: Any, columns: Sequence[str] | None, *, tensors: bool) -> Data:
    """A Dataset of Hugging Face's as data: its columns as tensors where all are numbers, else itself, which is read by the batch.

    Raises UserError for a stream, whose length nobody knows, for a dict of splits, and for a column that is not there.
    """
    datasets = hf_datasets()
    if isinstance(dataset, datasets.IterableDataset):
        at = "the dataset is a stream: how many samples it has, as after a filter, nobody knows before its end"
        raise UserError(SETTING, at, "load it without streaming, or write it with save_to_disk(); filters are then indexed")
    if isinstance(dataset, datasets.DatasetDict):
        raise UserError(
            SETTING, f"is a dict of the splits {', '.join(dataset)}", f"give one of them, as dataset[{next(iter(dataset))!r}]"
        )
    if not isinstance(dataset, datasets.Dataset):
        at = f"is a {type(dataset).__name__}"
        raise UserError(SETTING, at, "give the path of files, or a Dataset of Hugging Face's")
    if not len(dataset):
        raise UserError(SETTING, "the dataset has no rows", "give one that has some")
    schema = dataset.features.arrow_schema
    names = chosen(schema, columns, "the dataset")
    if tensors and dataset.format["type"] is None and all(is_numeric(schema.field(name).type) for name in names):
        return DatasetRows(dataset, names)
    samples: MapStyle = dataset.select_columns(names) if columns else dataset
    return samples


def is_saved_dataset(path: Path) -> bool:
    """Whether save_to_disk() wrote this folder."""
    return (path / STATE).is_file() or (path / PARTS).is_file()


def read_saved(path: Path) -> Any:
    """The dataset of a folder, its shards mapped. Raises UserError."""
    datasets = hf_datasets()
    try:
        for state in path.rglob(STATE):
            for shard in json.loads(state.read_text())["_data_files"]:
                _check_whole(state.parent / shard["filename"])
        found = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError) as e:
        why = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise UserError(SETTING, f"{path} cannot be read as a saved dataset ({why})", "write it again with save_to_disk()") from e
    if isinstance(found, datasets.DatasetDict):
        raise UserError(SETTING, f"{path} holds the splits {', '.join(found)}", f"name one of them, as {path}/{next(iter(found))}")
    return found


def _check_whole(shard: Path) -> None:
    """Raises UserError if a shard is missing or cut off: its stream must end, as a reader takes what comes before as all."""
    try:
        with shard.open("rb") as file:
            file.seek(-len(END), 2)
            whole = file.read() == END
    except OSError as e:
        why = e.strerror or "too short"
        raise UserError(SETTING, f"{shard} cannot be read ({why})", "write the dataset again with save_to_disk()") from e
    if not whole:
        raise UserError(SETTING, f"{shard} is cut off: its stream has no end", "write the dataset again with save_to_disk()")
