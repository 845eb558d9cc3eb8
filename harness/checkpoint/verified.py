"""Whether the files of a checkpoint are what was written: its manifest, and the digest of every file it names. No torch in here.

What is read may be hostile: nothing is read past a bound, and no link is followed.
"""

import json
from collections.abc import Mapping
from typing import Any

from harness.checkpoint.manifest import LARGEST_JSON, MANIFEST, STATE, DamagedError, Digest, decode
from harness.checkpoint.storage import Store, evaluated

ODD = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""The exceptions that reading a damaged checkpoint raises beside DamagedError."""


def read_manifest(store: Store, name: str) -> dict[str, Digest]:
    """The files of a checkpoint. Raises DamagedError or OSError."""
    return decode(store.read(name, MANIFEST, 0, _bounded(store.size(name, MANIFEST), MANIFEST)))


def check_file(store: Store, name: str, file: str, digest: Digest) -> None:
    """Raises DamagedError where a file is not the one that was written; one of another size is not read. Raises OSError."""
    if store.size(name, file) != digest.bytes or store.digest(name, file) != digest:
        raise DamagedError(f"{file} is not what was written")


def read_document(store: Store, name: str, files: Mapping[str, Digest]) -> Any:
    """The newest state of a checkpoint as parsed, nothing of it checked. Raises DamagedError, or one of ODD."""
    size = _bounded(store.size(name, STATE), STATE)
    if size != files[STATE].bytes:
        raise DamagedError(f"{STATE} is not what was written")
    return evaluated(store, name) or json.loads(store.read(name, STATE, 0, size))


def _bounded(size: int | None, file: str) -> int:
    if size is None:
        raise DamagedError(f"{file} is missing")
    if size > LARGEST_JSON:
        raise DamagedError(f"{file} has {size:,} bytes, more than any that is written")
    return size
