"""Where the samples of a file lie, in a small file beside it: made once, by one process, whole or not at all, and mapped.

It knows the size, the beginning and the end of the file that it is of: another's is refused, and never read approximately.
"""

import json
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from harness.config.errors import UserError
from harness.data.record_files import SETTING

SUFFIX = ".index"
MAGIC = "widebatch index 1"
HEAD = 4096
"""Bytes before the numbers: JSON, filled up with spaces."""
EDGE = 1 << 16


def write_index(path: Path, kind: str, parts: Iterator[NDArray[np.int64]], said: dict[str, Any]) -> None:
    """Write the index of `path`: its `parts` one after another, and what is `said` when they are done. Raises UserError."""
    index = _beside(path)
    draft = index.with_name(f".{index.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            file.write(b" " * HEAD)
            for part in parts:
                file.write(part.tobytes())
            count = (file.tell() - HEAD) // 8
            head = json.dumps({"magic": MAGIC, "kind": kind, "of": _identity(path), "count": count} | said).encode()
            if len(head) > HEAD:
                raise UserError(
                    SETTING, f"the members of {path} have too many different suffixes", "split it so that each file has fewer"
                )
            file.seek(0)
            file.write(head)
        draft.replace(index)
    except OSError as e:
        at = f"{index} cannot be written ({e.strerror}): samples are found by it"
        raise UserError(SETTING, at, "make the folder writable once, or index the file elsewhere and copy both") from e
    finally:
        draft.unlink(missing_ok=True)


def read_index(path: Path, kind: str) -> tuple[dict[str, Any], NDArray[np.int64]] | None:
    """(what is said, the numbers, mapped) of the index of `path`; None if there is none. Raises UserError for another file's."""
    index = _beside(path)
    try:
        with index.open("rb") as file:
            head = json.loads(file.read(HEAD))
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        whole = head["magic"] == MAGIC and head["kind"] == kind and len(pages) == HEAD + 8 * head["count"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise UserError(SETTING, f"{index} is damaged, or no index", "remove it: it is made again")
    if head["of"] != _identity(path):
        raise UserError(SETTING, f"{index} is the index of another file than {path.name} is now", "remove it: it is made again")
    return head, np.frombuffer(pages, np.int64, head["count"], HEAD)


def _beside(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX)


def _identity(path: Path) -> str:
    """The size of a file and a hash of its ends."""
    size = path.stat().st_size
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        state.update(file.read(EDGE))
        file.seek(max(size - EDGE, 0))
        state.update(file.read(EDGE))
    return f"{size}:{state.hexdigest()}"
