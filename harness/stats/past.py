"""What a run's journal tells of the past."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_TAIL = 1 << 20


def last_window(journal: Path) -> dict[str, Any]:
    """The last window's line of a journal; empty where there is none. Reads the end of the file alone."""
    return next((line for line in _tail(journal) if line["event"] == "window"), {})


def began(journal: Path) -> float | None:
    """When a run was first started (Unix), as the first line of its journal tells; None where it does not."""
    with journal.open("rb") as f:
        line = next(_parsed(iter([f.readline()])), {})
    return line.get("began")


def starts(journal: Path) -> int:
    """How often a run was started, as its journal tells. Reads the end of the file alone, where the last window gives a count."""
    found = 0
    for line in _tail(journal):
        if line["event"] == "start":
            found += 1
        elif line["event"] == "window":
            return found + 1 + int(line["reliability/restarts"])
    return found


def windows(journal: Path) -> list[dict[str, Any]]:
    """All windows of a journal, in order. Raises OSError."""
    return [line for line in _parsed(iter(journal.read_bytes().splitlines())) if line["event"] == "window"]


def _tail(journal: Path) -> Iterator[dict[str, Any]]:
    """The journal's last lines, the last one first."""
    if not journal.exists():
        return
    with journal.open("rb") as f:
        f.seek(max(journal.stat().st_size - _TAIL, 0))
        yield from _parsed(reversed(f.read().splitlines()))


def _parsed(lines: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    """The lines that are whole: a kill may have cut the last one."""
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            continue
