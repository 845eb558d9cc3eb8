"""Mosaic's MDS folders as data: any sample by its number, by the folder's index.json and the offsets in each shard."""

import io
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import orjson

from harness.config.errors import UserError
from harness.data.arrow_columns import pyarrow
from harness.data.record_files import SETTING, RecordFiles

INDEX = "index.json"
_COMPRESSIONS = {"zstd": "zstd", "gz": "gzip", "bz2": "bz2", "br": "brotli"}
"""MDS's names of compressions, and pyarrow's."""
NUMBERS = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64")


def _image(data: bytes) -> Any:
    from PIL import Image  # what has no pictures does not pay for it

    return Image.open(io.BytesIO(data))


_WHOLE: dict[str, Callable[[bytes], Any]] = {
    "bytes": lambda data: data,
    "str": lambda data: data.decode(),
    "int": lambda data: int(np.frombuffer(data, np.int64)[0]),
    "str_int": lambda data: int(data),
    "str_float": lambda data: float(data),
    "json": orjson.loads,
    "jpeg": _image,
    "png": _image,
    **{name: lambda data, name=name: np.frombuffer(data, name)[0] for name in NUMBERS},  # type: ignore[misc]
}
_CODES = {8: "uint8", 9: "int8", 16: "uint16", 17: "int16", 18: "float16", 32: "uint32", 33: "int32", 34: "float32"}
_CODES |= {64: "uint64", 65: "int64", 66: "float64"}


@final
class MdsShards(RecordFiles):
    """The samples of a folder that holds an index.json and its shards: dicts by column; `columns`: these alone.

    Compressed shards are unpacked once, beside themselves, as Mosaic's own reader does.
    """

    def __init__(self, folder: Path, columns: Sequence[str] | None = None) -> None:
        """Raises UserError for a shard that is missing, cut off or packed unknowably, and a column that is pickled or not there."""
        shards = [shard for shard in _shards(folder) if shard["samples"]]  # its writer leaves one behind a very long sample
        if not shards:
            raise UserError(SETTING, f"{folder} holds no samples", "give a folder that has some")
        self._columns = columns
        self._forms = [[*zip(s["column_names"], s["column_encodings"], s["column_sizes"], strict=True)] for s in shards]
        for form in self._forms:
            _check_columns(folder, form, columns)
        super().__init__([folder / s["raw_data"]["basename"] for s in shards], [s["samples"] for s in shards])
        for path, shard in zip(self.paths, shards, strict=True):
            if shard["zip_data"] and not path.is_file():
                _unpack(path, folder / shard["zip_data"]["basename"], str(shard["compression"]))
            _check_shard(path, shard)

    def sample(self, file: int, row: int) -> dict[str, Any]:
        """See RecordFiles.sample."""
        begin, end = np.frombuffer(self.read(file, 4 * (1 + row), 8), np.uint32).tolist()
        data = self.read(file, begin, end - begin)
        form, at, sizes = self._forms[file], 0, []
        for _, _, size in form:
            sizes.append(size or int(np.frombuffer(data, np.uint32, 1, at)[0]))
            at += 0 if size else 4
        out: dict[str, Any] = {}
        for (name, encoding, _), size in zip(form, sizes, strict=True):
            if self._columns is None or name in self._columns:
                out[name] = _decoded(encoding, data[at : at + size], f"{self.paths[file]}, sample {row}: {name}")
            at += size
        return out


def _decoded(encoding: str, data: bytes, where: str) -> Any:
    try:
        kind, _, rest = encoding.partition(":")
        return _array(rest, data) if kind == "ndarray" else _WHOLE[kind](data)
    except (ValueError, OSError, IndexError) as e:
        raise ValueError(f"{where} cannot be read as {encoding} ({e})") from e


def _array(given: str, data: bytes) -> Any:
    """An array whose type and shape are given, or stand before its values."""
    dtype, _, shape_text = given.partition(":")
    at = 0
    if not dtype:
        dtype, at = _CODES[data[0]], 1
    if shape_text:
        shape = [int(n) for n in shape_text.split(",")]
    else:
        ndim, width = data[at] >> 2, 1 << (data[at] & 3)
        shape = np.frombuffer(data, f"uint{8 * width}", ndim, at + 1).astype(np.int64).tolist()
        at += 1 + ndim * width
    return np.frombuffer(data, dtype, offset=at).reshape(shape).copy()


def _shards(folder: Path) -> list[Mapping[str, Any]]:
    try:
        tree = json.loads((folder / INDEX).read_bytes())
        shards: list[Mapping[str, Any]] = tree["shards"]
        odd = next((s for s in shards if s["format"] != "mds" or s["version"] != 2), None)
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(SETTING, f"{folder / INDEX} cannot be read ({e})", "write the folder again") from e
    if odd is not None or not shards:
        raise UserError(SETTING, f"{folder / INDEX} is not of MDS, version 2", "give such a folder")
    return shards


def _unpack(path: Path, packed: Path, compression: str) -> None:
    """Write the shard `path` from its compressed form, whole or not at all. Raises UserError."""
    kind = compression.partition(":")[0]
    if kind not in _COMPRESSIONS:
        at = f"{packed} is compressed by {kind}, which is not read here"
        raise UserError(SETTING, at, f"write the folder uncompressed, or by {', '.join(_COMPRESSIONS)}")
    pa = pyarrow()
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with pa.input_stream(str(packed), compression=_COMPRESSIONS[kind]) as source, draft.open("wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
        draft.replace(path)
    except OSError as e:
        raise UserError(SETTING, f"{packed} cannot be unpacked beside itself ({e})", "bring it back, or make room there") from e
    finally:
        draft.unlink(missing_ok=True)


def _check_columns(folder: Path, form: Sequence[tuple[str, str, Any]], columns: Sequence[str] | None) -> None:
    known = {name: encoding.partition(":")[0] for name, encoding, _ in form}
    odd = next((name for name in columns or () if name not in known), None)
    if odd is not None:
        raise UserError(SETTING, f"{folder} has no column {odd!r}", f"it has {', '.join(known)}")
    bad = next((name for name in columns or known if known[name] not in _WHOLE and known[name] != "ndarray"), None)
    if bad is not None:
        why = "a pickle, which can run code as it is read" if known[bad] == "pkl" else "not read here"
        raise UserError(SETTING, f"{folder}: column {bad} is {known[bad]}, {why}", "leave it out, or write it otherwise")


def _check_shard(path: Path, shard: Mapping[str, Any]) -> None:
    try:
        size = path.stat().st_size
    except OSError as e:
        raise UserError(SETTING, f"{path} cannot be read ({e.strerror})", "bring the shard back") from e
    if size != shard["raw_data"]["bytes"]:
        at = f"{path} has {size:,} bytes, and {INDEX} says {shard['raw_data']['bytes']:,}: it is cut off, or another's"
        raise UserError(SETTING, at, "bring the shard back whole")
