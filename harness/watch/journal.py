"""The journal: events.jsonl in the run folder, one JSON object per line, append-only. The ground truth of a run."""

import json
import math
from pathlib import Path
from typing import Any, final

from harness.stats.events import NAMES, Event, Shown, Started, Stepped


def to_line(event: Event) -> dict[str, Any]:
    """An event as one flat object: its name, step and samples first, metrics by their names.

    Images stay out. JSON has no NaN: a number that is not finite is written as the text "nan", "inf" or "-inf".
    """
    line, fields = to_fields(event)
    return line | {name: _plain(value) for name, value in fields.items()}


def to_fields(event: Event) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the line's head, what follows it), numbers as they are."""
    line: dict[str, Any] = {"event": NAMES[type(event)]}
    fields = dict(vars(event))
    if isinstance(event, Started):
        fields["plan"] = event.plan.to_json()
    fields |= fields.pop("metrics", {})
    if isinstance(event, Shown):
        fields["rows"] = [{k: v for k, v in row.items() if isinstance(v, str | int | float | bool)} for row in event.rows]
    return line, fields


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@final
class Journal:
    """Appends each event to a file; flushed at the end of each window, so that a kill loses less than one."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def __call__(self, event: Event) -> None:
        """Write one line."""
        line, fields = to_fields(event)
        try:
            text = json.dumps(line | fields, allow_nan=False)
        except ValueError:  # a number is not finite: rare, and so looked for only then
            text = json.dumps(to_line(event), allow_nan=False)
        self._file.write(text + "\n")
        if not isinstance(event, Stepped):
            self._file.flush()

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
