"""What a run's journal tells of the past."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_TAIL = 1 << 20


def last_window(journal: Path) -> dict[str, Any]:
    """The last window's line of a journal; empty where there is none. Reads the end of the file alone."""
    if not journal.exists():
        return {}
    with journal.open("rb") as f:
        f.seek(max(journal.stat().st_size - _TAIL, 0))
        lines = f.read().splitlines()
    return next((line for line in _parsed(reversed(lines)) if line["event"] == "window"), {})


def windows(journal: Path) -> list[dict[str, Any]]:
    """All windows of a journal, in order. Raises OSError."""
    return [line for line in _parsed(iter(journal.read_bytes().splitlines())) if line["event"] == "window"]


def _parsed(lines: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    """The lines that are whole: a kill may have cut the last one."""
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            continue
