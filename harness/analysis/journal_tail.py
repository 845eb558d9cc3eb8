"""The last window of a run and the number of its starts, read from the end of its journal."""

import math
from pathlib import Path
from typing import Any

from harness.analysis.journal_lines import bounded_lines, finite, number, parse, read, read_back
from harness.config.plain_file import open_plain


def last_window(journal: Path) -> dict[str, Any]:
    """The last window's line of a journal; empty if there is none. Reads the end of the file alone."""
    return next((line for line in read_back(journal) if line["event"] == "window"), {})


def began(journal: Path) -> float | None:
    """When a run was first started (Unix), by the first line of its journal; None if that does not say. Raises OSError."""
    with open_plain(journal) as file:
        first = next(parse(bounded_lines(file)), {})
    found = number(first.get("began"))
    return found if math.isfinite(found) else None


def starts(journal: Path) -> int:
    """How often a run was started, by its journal. Reads the end of the file alone, where the last window gives a count."""
    found = 0
    for line in read_back(journal):
        if line["event"] == "start":
            found += 1
        elif line["event"] == "window" and (restarts := finite(line.get("reliability/restarts"))) >= 0:
            return found + 1 + int(restarts)
    return found


def reports(journal: Path) -> list[dict[str, Any]]:
    """All windows and evaluations of a journal, in order. Raises OSError."""
    return [line for line in read(journal, steps=False) if line["event"] in ("window", "eval")]


def windows(journal: Path) -> list[dict[str, Any]]:
    """The windows of a journal, in order."""
    return [line for line in reports(journal) if line["event"] == "window"]
