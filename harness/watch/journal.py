"""The journal: events.jsonl in the run folder, one JSON object per line, append-only. The ground truth of a run."""

import json
import math
from pathlib import Path
from typing import Any, final

import orjson

from harness.stats.events import NAMES, Event, Shown, Started, Stepped, Windowed


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
    if not math.isfinite(sum(filter(None, metrics.values()))):  # one that is not makes the sum so
        metrics = {name: _plain(value) for name, value in metrics.items()}
    return orjson.dumps({"event": NAMES[type(event)], "step": event.step, "samples": event.samples, **metrics})


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@final
class Journal:
    """Appends each event to a file; flushed at the end of each window, so that a kill loses less than one."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")

    def __call__(self, event: Event) -> None:
        """Write one line."""
        line = _numbers(event) if isinstance(event, Stepped | Windowed) else json.dumps(to_line(event), allow_nan=False).encode()
        self._file.write(line + b"\n")
        if not isinstance(event, Stepped):
            self._file.flush()

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
