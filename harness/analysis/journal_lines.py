"""The lines of a journal, read so that no content of the file can fail a reader: the one place where events.jsonl is parsed.

A journal may have been cut by a kill, damaged by a disk, or edited. A line that is not an event of a run is passed over.
"""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from harness.config.plain_file import open_plain

Line = dict[str, Any]
"""One event: `event` is text, `step` and `samples` are whole numbers from 0 to MOST; any other value may have any type, see
`number`."""
LONGEST = 16 << 20
"""Bytes of the longest line that is read; the longest entry, the run file, has at most a megabyte."""
MOST = 1 << 53
DEEPEST = 32
"""The deepest nesting of lists and objects in one line that is read."""
_TAIL = 1 << 20
_STEP = b'{"event":"step"'
_SPACED_STEP = b'{"event": "step"'


def parse(lines: Iterable[bytes]) -> Iterator[Line]:
    """The events among `lines`, in order."""
    for text in lines:
        try:  # numbers past 64 bits are floats or an error, nesting past 1,024 an error: never a RecursionError
            line = orjson.loads(text)
        except orjson.JSONDecodeError:
            continue
        if type(line) is dict and _is_event(line):
            flat = b"[" not in text and text.rfind(b"{") <= 0
            if flat or _shallow(line, DEEPEST):
                yield line


def read(journal: Path, *, steps: bool = True) -> Iterator[Line]:
    """The events of a journal, in order; on request without those of single steps, the bulk of a journal. Raises OSError."""
    with open_plain(journal) as file:
        lines = bounded_lines(file)
        yield from parse(lines if steps else (text for text in lines if not text.startswith((_STEP, _SPACED_STEP))))


def read_back(journal: Path) -> Iterator[Line]:
    """The events in the last megabyte of a journal, the last one first; none where there is no journal."""
    if not journal.is_file():
        return
    with open_plain(journal) as file:
        file.seek(max(journal.stat().st_size - _TAIL, 0))
        yield from parse(reversed(file.read(_TAIL).split(b"\n")))


def bounded_lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file; of one longer than LONGEST nothing, and never more than that in memory."""
    skipping = False
    while text := file.readline(LONGEST):
        whole = text.endswith(b"\n") or len(text) < LONGEST
        if whole and not skipping:
            yield text
        skipping = not whole


def number(value: Any) -> float:
    """A number of a journal, where one that is not finite is written as text; NaN in the place of anything else."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def finite(value: Any) -> float:
    """A finite number of a journal, such as a length of time; 0 if there is none."""
    found = number(value)
    return found if math.isfinite(found) else 0.0


def _is_event(line: Line) -> bool:
    step, samples = line.get("step"), line.get("samples")
    if type(step) is not int or type(samples) is not int or type(line.get("event")) is not str:
        return False
    return 0 <= step <= MOST and 0 <= samples <= MOST


def _shallow(value: Any, levels: int) -> bool:
    """Whether no more than `levels` lists and objects lie in one another."""
    if not isinstance(value, dict | list):
        return True
    inside = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(_shallow(part, levels - 1) for part in inside if isinstance(part, dict | list))
