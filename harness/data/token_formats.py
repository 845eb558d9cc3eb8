"""One file of token ids, mapped and never read whole: raw .bin, llm.c's .bin with its header, Megatron's .bin + .idx, .npy.

Opening one costs the same for any size: what is checked is the header, the index and the length of the file.
"""

import errno
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.config.errors import UserError
from harness.data.document_bounds import Bounds

SETTING = "recipe.data"
RawType = Literal["uint16", "uint32"]
"""Types of ids in a .bin that does not say its own."""
SUFFIXES = (".bin", ".npy")
INDEX = "tokens.json"
"""The index beside .bin files, as `widebatch tokenize` writes it."""
ORIGIN = "origin.json"
"""File in a folder whose tokens are not complete yet; it says what they are made of."""
LLM_C = {(20240520, 1): "uint16", (20240801, 7): "uint32"}
"""(magic number, version) -> type of the ids, from the header of llm.c's and modded-nanogpt's files: 256 int32, of which [2] is the
number of tokens."""
LLM_C_BYTES = 1024
MEGATRON = b"MMIDIDX\x00\x00"
MEGATRON_TYPES = {1: "uint8", 4: "int32", 5: "int64", 8: "uint16"}
"""Megatron-LM's codes for the types that hold ids."""
_HEADER = struct.Struct("<9sQBQQ")


@dataclass(frozen=True)
class TokenFile:
    """`ids`: the tokens [n], mapped. `guessed`: nothing but the setting says what type they are.

    `bounds`: where documents begin, if an index says so.
    """

    path: Path
    ids: NDArray[Any]
    guessed: bool
    bounds: Bounds | None = None


@dataclass(frozen=True)
class TokenIndex:
    """What a folder's tokens.json says: the type of the ids, tokens by file name, and a digest of all of them.

    `eos`: the id behind each document, None for none.
    """

    dtype: RawType
    vocabulary: int
    tokens: int
    digest: str
    files: dict[str, int]
    eos: int | None = None


def open_tokens(path: Path, dtype: RawType, index: TokenIndex | None) -> TokenFile:
    """Map a file; `dtype` is that of a raw .bin, `index` its folder's. Raises UserError if it is not whole, or another kind."""
    try:
        file = _open(path, dtype, index)
    except OSError as e:
        many = e.errno == errno.EMFILE
        remedy = "raise the limit (ulimit -n), or join the files" if many else "give a file that can be read"
        raise UserError(SETTING, f"{path}: {e.strerror}", remedy) from e
    if not len(file.ids):
        raise UserError(SETTING, f"{path} holds no tokens", "leave it out")
    return file


def read_index(folder: Path) -> TokenIndex | None:
    """The tokens.json of a folder, None if there is none. Raises UserError if it cannot be used."""
    try:
        return msgspec.json.decode((folder / INDEX).read_bytes(), type=TokenIndex)
    except FileNotFoundError:
        if (folder / ORIGIN).is_file():
            at = f"{folder} is not complete: `widebatch tokenize` was interrupted"
            raise UserError(SETTING, at, "run the same command again: it continues where it stopped") from None
        return None
    except (OSError, msgspec.MsgspecError) as e:
        remedy = "write it again with `widebatch tokenize`, or remove it"
        raise UserError(SETTING, f"{folder / INDEX} cannot be read ({e})", remedy) from e


def _open(path: Path, dtype: RawType, index: TokenIndex | None) -> TokenFile:
    if path.suffix == ".npy":
        return TokenFile(path, _numpy(path), guessed=False)
    size = path.stat().st_size
    if not size:
        raise UserError(SETTING, f"{path} is empty", "leave it out, or write it again")
    if index is not None and path.name in index.files:
        ids = _mapped(path, np.dtype(index.dtype), 0, size)
        if len(ids) != index.files[path.name]:
            at = f"{path} holds {len(ids):,} tokens, and {INDEX} beside it says {index.files[path.name]:,}"
            raise UserError(SETTING, at, "they do not belong together, or one is truncated: tokenize again")
        return TokenFile(path, ids, guessed=False)
    if path.with_suffix(".idx").is_file():
        return _megatron(path, size)
    head = np.fromfile(path, np.int32, 3)
    known = LLM_C.get((int(head[0]), int(head[1]))) if len(head) == 3 else None
    if known:
        ids = _mapped(path, np.dtype(known), LLM_C_BYTES, size)
        if len(ids) != head[2]:
            raise UserError(SETTING, f"{path} holds {len(ids):,} tokens, and its header says {head[2]:,}", "write it again")
        return TokenFile(path, ids, guessed=False)
    return TokenFile(path, _mapped(path, np.dtype(dtype), 0, size), guessed=True)


def _mapped(path: Path, dtype: np.dtype[Any], start: int, size: int) -> NDArray[Any]:
    """The ids from byte `start` to the end. Raises UserError if they are no whole number."""
    if (size - start) % dtype.itemsize:
        at = f"{path} has {size - start:,} bytes of tokens, not a multiple of {dtype.itemsize}: cut off, or not {dtype}"
        raise UserError(SETTING, at, "write it again, or give its recipe.dtype")
    with path.open("rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    pages.madvise(mmap.MADV_RANDOM)  # rows are read in any order: the kernel would read much around each that no batch needs
    return np.frombuffer(pages, dtype, offset=start)


def _numpy(path: Path) -> NDArray[Any]:
    """A .npy of one axis. Raises UserError."""
    try:
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as e:
        raise UserError(SETTING, f"{path} is not a whole .npy file ({e})", "write it again with numpy.save") from e
    if ids.ndim != 1 or ids.dtype.kind not in "ui":
        at = f"{path} holds {ids.dtype} of shape {list(ids.shape)}"
        raise UserError(SETTING, at, "give token ids: whole numbers, one after another")
    return _mapped(path, ids.dtype, ids.offset, ids.offset + ids.nbytes)


def _megatron(path: Path, size: int) -> TokenFile:
    """Megatron-LM's pair of files; the index is read at its ends alone. Raises UserError if it is another's."""
    index = path.with_suffix(".idx")
    with index.open("rb") as file:
        head = file.read(_HEADER.size)
        if len(head) < _HEADER.size or not head.startswith(MEGATRON):
            at = f"{index} is not an index of Megatron-LM's"
            raise UserError(SETTING, at, "give the index of the .bin, or move this file away if the .bin holds raw ids")
        _, version, code, rows, documents = _HEADER.unpack(head)
        if version != 1 or code not in MEGATRON_TYPES:
            at = f"{index} is of version {version}, its tokens of type {code}"
            raise UserError(SETTING, at, f"known: version 1, types {', '.join(map(str, MEGATRON_TYPES))}")
        dtype = np.dtype(MEGATRON_TYPES[code])
        least = _HEADER.size + 12 * rows + 8 * documents
        if not rows or index.stat().st_size not in (least, least + rows):  # the file may end with one byte a row, its mode
            at = f"{index} has {index.stat().st_size:,} bytes for {rows:,} rows: it is cut off"
            raise UserError(SETTING, at, "write it again")
        file.seek(_HEADER.size + 4 * (rows - 1))
        (length,) = struct.unpack("<i", file.read(4))
        file.seek(_HEADER.size + 4 * rows + 8 * (rows - 1))
        (start,) = struct.unpack("<q", file.read(8))
    end = start + length * dtype.itemsize
    if end != size:
        at = f"{path} has {size:,} bytes, and {index.name} beside it describes {end:,}"
        raise UserError(SETTING, at, "they do not belong together, or one is truncated")
    return TokenFile(path, _mapped(path, dtype, 0, size), guessed=False, bounds=_bounds(index, rows, documents, dtype.itemsize))


def _bounds(index: Path, rows: int, documents: int, itemsize: int) -> Bounds | None:
    """Where Megatron-LM's index says that documents begin; None if it does not."""
    start = _HEADER.size + 4 * rows
    with index.open("rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    pointers = np.frombuffer(pages, np.int64, rows, start)
    firsts = np.frombuffer(pages, np.int64, documents, start + 8 * rows)
    whole = documents > 1 and firsts[0] == 0 and firsts[-1] == rows
    return Bounds(index, firsts, pointers, itemsize) if whole else None
