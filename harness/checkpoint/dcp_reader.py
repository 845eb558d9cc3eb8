"""A folder of torch's distributed checkpoint (DCP), read without its own reader, which unpickles what the metadata say.

`.metadata` is a pickle of DCP's records: here only these records and torch's sizes and types can come out of it. Each piece of a
tensor lies in a `.distcp` file, as torch.save wrote it, and is read for a plain tensor alone.
"""

import io
import pickle
import re
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

METADATA = ".metadata"
_FILE = re.compile(r"\w[\w.-]{0,199}")
_LARGEST = 100_000_000
_RECORDS = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties", "MetadataIndex",
        "StorageMeta", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "collections": {"OrderedDict"},
}  # fmt: skip


class DcpError(ValueError):
    """The folder is not one that DCP wrote; the text says why, in one line."""


class _Records(pickle.Unpickler):
    """An unpickler that loads DCP's records, torch's sizes, types and devices, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """One of the classes that are allowed. Raises DcpError for all others."""
        if module == "torch" and name == "Size":
            return torch.Size
        if module == "torch" and isinstance(vars(torch).get(name), torch.dtype | torch.layout):
            return vars(torch)[name]
        if module.partition(".")[0] == "pathlib" and name in ("PosixPath", "WindowsPath"):
            return PurePosixPath  # the path where the folder was written; it is not used
        if name in _RECORDS.get(module, ()):
            return super().find_class(module, name)
        raise DcpError(f"its metadata hold {module}.{name}, which does not belong in DCP's metadata and is not unpickled")


def open_dcp(folder: Path) -> tuple[dict[str, tuple[int, ...]], Callable[[str], Tensor]]:
    """(the shape of each tensor, a function that reads a whole tensor by name). Raises DcpError, OSError."""
    if (folder / METADATA).stat().st_size > _LARGEST:
        raise DcpError(f"its metadata are larger than {_LARGEST:,} bytes")
    try:
        found = _Records(io.BytesIO((folder / METADATA).read_bytes())).load()
        held = {name: about for name, about in found.state_dict_metadata.items() if type(about).__name__ == "TensorStorageMetadata"}
        places = {(index.fqn, tuple(index.offset or ())): info for index, info in found.storage_data.items()}
        shapes = {str(name): tuple(int(n) for n in about.size) for name, about in held.items()}
    except (AttributeError, TypeError, ValueError, IndexError, EOFError, pickle.UnpicklingError) as e:
        raise DcpError(f"its metadata cannot be read ({type(e).__name__})") from e
    return shapes, lambda name: _whole(folder, name, held[name], places)


def _whole(folder: Path, name: str, about: Any, places: Mapping[tuple[str, tuple[int, ...]], Any]) -> Tensor:
    """A tensor from its chunks, each of the place and size that the metadata say. Raises DcpError."""
    shape = tuple(about.size)
    out, filled = torch.empty(shape, dtype=about.properties.dtype), 0
    for chunk in about.chunks:
        offsets, sizes = tuple(chunk.offsets), tuple(chunk.sizes)
        if any(low < 0 or low + n > most for low, n, most in zip(offsets, sizes, shape, strict=True)):
            raise DcpError(f"a chunk of {name} lies outside of it")
        info = places.get((name, offsets))
        part = None if info is None else _read(folder, info)
        if part is None or tuple(part.shape) != sizes:
            raise DcpError(f"a chunk of {name} is missing or has another shape")
        out[tuple(slice(low, low + n) for low, n in zip(offsets, sizes, strict=True))] = part
        filled += prod(sizes)
    if filled != prod(shape):
        raise DcpError(f"the chunks of {name} do not cover the whole tensor")
    return out


def _read(folder: Path, info: Any) -> Tensor:
    """One chunk. Raises DcpError."""
    if _FILE.fullmatch(str(info.relative_path)) is None:
        raise DcpError(f"its metadata name the file {str(info.relative_path)[:80]!r}")
    file = folder / str(info.relative_path)
    if not 0 <= info.offset <= info.offset + info.length <= file.stat().st_size:
        raise DcpError(f"{file.name} is too short")
    with file.open("rb") as opened:
        opened.seek(info.offset)
        data = opened.read(info.length)
    try:
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as e:
        raise DcpError(f"{file.name} holds no plain tensor") from e
    if not isinstance(found, Tensor):
        raise DcpError(f"{file.name} holds no plain tensor")
    return found
