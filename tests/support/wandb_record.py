"""What a W&B run has on disk, read with W&B's own schema of its records."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK, HEADER = 1 << 15, 7
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4
"""Parts of a record, in LevelDB's log format."""


def history(folder: Path) -> list[dict[str, Any]]:
    """The points of the one run below `folder`, in order."""
    (log,) = folder.glob("wandb/*run-*/*.wandb")
    rows = [record.history for record in _records(log.read_bytes()) if record.WhichOneof("record_type") == "history"]
    return [{item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in row.item} for row in rows]


def _records(data: bytes) -> Iterator[Any]:
    place, held = HEADER, b""  # the file has a header too
    while place + HEADER <= len(data):
        left = BLOCK - place % BLOCK
        if left < HEADER:
            place += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        held += data[place + HEADER : place + HEADER + size]
        place += HEADER + size
        if kind in (WHOLE, LAST):
            yield wandb_internal_pb2.Record.FromString(held)  # type: ignore[attr-defined]
            held = b""
