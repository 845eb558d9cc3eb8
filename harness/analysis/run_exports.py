"""Runs from a table that W&B exports: CSV, or JSON as a list of runs with `config` and `summary`."""

import csv
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.analysis.scaling_law import EndedRun
from harness.config.errors import UserError
from harness.config.plain_file import read_plain

MOST = 1 << 28
COLUMNS = {
    "batch": "plan.global_batch",
    "horizon": "plan.total_samples",
    "lr": "plan.lr",
    "parameters": "parameters",
    "sample_tokens": "plan.sample_tokens",
    "optimizer": "plan.optimizer",
}
"""Where runs of this program have what a fit needs: columns of the export, with dots between the levels of a config."""
_OVER = ("finished", "")
"""The states of runs that count; W&B's API leaves the state out of tables of one's own making."""


def columns_of(given: list[str]) -> dict[str, str]:
    """COLUMNS, where `NAME=COLUMN` of the command line says otherwise. Raises UserError."""
    found = dict(COLUMNS)
    for one in given:
        name, sign, column = one.partition("=")
        if not sign or name not in COLUMNS or not column:
            raise UserError("--columns", f"{one} is not NAME=COLUMN", f"the names are {', '.join(COLUMNS)}")
        found[name] = column
    return found


def exported(path: Path, columns: Mapping[str, str], metric: str) -> Iterator[EndedRun]:
    """The runs of an export, in order; `why` says of one why it cannot be used. Raises UserError if the file is none."""
    rows = _rows(path)
    known = {name for row in rows for name in row}
    for name in ("batch", "horizon", "lr"):
        if columns[name] not in known:
            at = f"{path.name} has no column {columns[name]!r} for the {name}"
            raise UserError("--columns", at, f"give {name}=COLUMN, one of {', '.join(sorted(known)[:12])}")
    if metric not in known:
        raise UserError("--metric", f"{path.name} has no column {metric!r}", "give one of its columns")
    for number, row in enumerate(rows, 1):
        yield _run(str(row.get("Name") or row.get("name") or f"run {number}"), row, columns, metric)


def _run(name: str, row: Mapping[str, Any], columns: Mapping[str, str], metric: str) -> EndedRun:
    held = {what: row.get(column) for what, column in columns.items()}
    numbers = {what: _number(value) for what, value in held.items() if what != "optimizer"}
    loss, state = _number(row.get(metric)), str(row.get("State") or row.get("state") or "")
    lacking = [what for what in ("batch", "horizon", "lr") if not numbers[what] > 0]
    why = f"{state}, not finished" if state not in _OVER else f"no {' and no '.join(lacking)}" if lacking else ""
    return EndedRun(
        name=name,
        why=why or ("" if math.isfinite(loss) else f"no {metric} at its end"),
        batch=numbers["batch"],
        horizon=numbers["horizon"],
        lr=numbers["lr"],
        parameters=numbers["parameters"],
        sample_tokens=numbers["sample_tokens"] if numbers["sample_tokens"] > 0 else None,
        optimizer=str(held["optimizer"] or ""),
        loss=loss,
    )


def _number(value: object) -> float:
    """A cell as a number; nan where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except ValueError:
        return math.nan


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of an export, by column. Raises UserError."""
    try:
        text = read_plain(path, MOST).decode("utf-8-sig")
        found = list(csv.DictReader(text.splitlines())) if path.suffix == ".csv" else _json(text)
    except (OSError, ValueError, csv.Error, RecursionError) as e:
        raise UserError("RUNS", f"{path} cannot be read as an export of W&B ({e})", "give a CSV table, or JSON") from e
    if not found:
        raise UserError("RUNS", f"{path} has no row", "give an export of runs")
    return found


def _json(text: str) -> list[dict[str, Any]]:
    """A list of runs, with or without levels, as flat rows."""
    tree = json.loads(text)
    runs = tree.get("runs") if isinstance(tree, dict) else tree
    if not isinstance(runs, list) or not all(isinstance(run, dict) for run in runs):
        raise ValueError("no list of runs")
    return [dict(_flat(run)) for run in runs]


def _flat(run: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """(name, value) of a run's leaves. `config` and `summary` are no part of the names: a CSV export leaves them out too."""
    for name, value in run.items():
        if isinstance(value, dict):
            yield from _flat(value, before if not before and name in ("config", "summary") else f"{before}{name}.")
        else:
            yield before + name, value
