"""--from: what an earlier run measured, from its folder, its evidence.json or a report's JSON."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from harness.plan.decode import load
from harness.plan.errors import UserError
from harness.plan.evidence import FILE, Evidence, as_flags, from_json

MAX_BYTES = 50_000_000
REMEDY = "give a run folder, its evidence.json, or what `widebatch report --json` printed"


def add_from(parser: argparse.ArgumentParser) -> None:
    """The flag."""
    what = "plan with the noise scale and the largest stable lr that were measured there: a run folder, or JSON of a report"
    parser.add_argument("--from", dest="measured", type=Path, metavar="RUN", help=what)


def measured_flags(measured: Path | None, run: Path, settings: Mapping[str, str]) -> dict[str, str]:
    """The flags `settings` of the run file `run`, and what was measured in their words. Raises UserError."""
    if measured is None:
        return dict(settings)
    return {**settings, **as_flags(find(measured), load(run, settings).optim.name, settings)}


def find(path: Path) -> Evidence:
    """The evidence at `path`. A run's own evidence.json goes before its journal. Raises UserError."""
    if not path.is_dir():
        return _read(path)
    own = _read(path / FILE) if (path / FILE).is_file() else None
    told, why = _journal(path)
    if own is None and told is None:
        raise UserError("--from", why, "let it run longer, or give one at a larger batch")
    return own.over(told) if own else told or _read(path / FILE)


def _journal(folder: Path) -> tuple[Evidence | None, str]:
    """What the journal is evidence of, or why it is of none."""
    from harness.stats.evidence import evidence_of, nothing_known
    from harness.stats.journal import read_story

    try:
        with (folder / "events.jsonl").open("rb") as lines:
            story = read_story(str(folder), lines)
    except OSError as e:
        return None, f"{folder}: it holds no {FILE}, and its events.jsonl cannot be read ({e.strerror})"
    if story is None:
        return None, f"{folder}: no run has started in its events.jsonl"
    found = evidence_of([story])
    return found, "" if found else nothing_known(story)


def _read(path: Path) -> Evidence:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError("--from", f"{path} is larger than {MAX_BYTES:,} bytes", REMEDY)
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise UserError("--from", f"{path} cannot be read: {e}", REMEDY) from e
    if isinstance(tree, dict) and "runs" in tree:
        tree = tree.get("evidence")
        if tree is None:
            raise UserError("--from", f"{path} is a report of runs of which none measured a noise scale", REMEDY)
    if not isinstance(tree, dict):
        raise UserError("--from", f"{path} holds no evidence", REMEDY)
    return from_json(tree, str(path))
