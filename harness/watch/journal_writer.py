"""The journal: events.jsonl in the run folder, one JSON object per line, append-only. The ground truth of a run."""

import json
import math
from pathlib import Path
from typing import Any, final

import orjson

from harness.supervision.safe_files import append_own
from harness.telemetry.events import NAMES, Event, Histograms, Shown, Started, Stepped, Windowed

WAITING = 1 << 26
"""How many bytes of lines are kept while the disk is full."""


def to_line(event: Event) -> dict[str, Any]:
    """An event as one flat object: its name, step and samples first, metrics by their names.

    Images stay out. JSON has no NaN: a number that is not finite is written as the text "nan", "inf" or "-inf".
    """
    line: dict[str, Any] = {"event": NAMES[type(event)]}
    fields = dict(vars(event))
    if isinstance(event, Started):
        fields["plan"] = event.plan.to_json()
    fields |= fields.pop("metrics", {})
    if isinstance(event, Shown):
        fields["rows"] = [{k: v for k, v in row.items() if isinstance(v, str | int | float | bool)} for row in event.rows]
    return line | {name: _plain(value) for name, value in fields.items()}


def _numbers(event: Stepped | Windowed) -> bytes:
    """The line of an event that is all numbers: there are many of them, and orjson is quick. It would write NaN as null."""
    metrics = event.metrics
    if not math.isfinite(sum(filter(None, metrics.values()))):  # the sum is finite only if every value is
        metrics = {name: _plain(value) for name, value in metrics.items()}
    return orjson.dumps({"event": NAMES[type(event)], "step": event.step, "samples": event.samples, **metrics})


def _text(event: Event) -> bytes:
    """The line of any other event. What UTF-8 has no bytes for, as in the name of an odd file, is written as `?`."""
    return json.dumps(to_line(event), allow_nan=False, ensure_ascii=False).encode("utf-8", "replace")


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@final
class Journal:
    """Appends each event to a file, whole lines at the end of each window, so that a kill loses less than one window.

    What cannot be written, as on a full disk, is kept in memory and written first when that is possible again.
    """

    def __init__(self, path: Path) -> None:
        self._file = append_own(path)
        self._waiting = bytearray()
        if self._file.seek(0, 2) and self._cut():
            self._waiting += b"\n"

    def __call__(self, event: Event) -> None:
        """Write one line; histograms stay out.

        Raises OSError if the file takes nothing; the line is lost where more than WAITING are in memory.
        """
        if isinstance(event, Histograms):
            return
        if len(self._waiting) > WAITING:
            self._flush()
        line = _numbers(event) if isinstance(event, Stepped | Windowed) else _text(event)
        self._waiting += line + b"\n"
        if not isinstance(event, Stepped):
            self._flush()

    def _cut(self) -> bool:
        """Whether the file's last line was cut by a kill or a full disk: the next one must not continue in it."""
        self._file.seek(-1, 2)
        return self._file.read(1) != b"\n"

    def close(self) -> None:
        """Write the lines that are still in memory, and close."""
        try:
            self._flush()
        finally:
            self._file.close()

    def _flush(self) -> None:
        while self._waiting:
            written = self._file.write(self._waiting)
            del self._waiting[:written]
