"""The grid of a sweep as a file for `wandb sweep`, whose agents then start the runs: on any machine, seen on W&B's page."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from harness.analysis.target_metric import direction, read_target
from harness.config.errors import UserError
from harness.config.schema import Config


def check_places(config: Config) -> None:
    """Raises UserError where the runs of all agents would share a place, and resume each other."""
    for name, place in (("run.dir", config.run.dir), ("checkpoint.dir", config.checkpoint.dir)):
        if place is not None:
            raise UserError(name, f"is {place}, which all runs of the sweep would share", "leave it out: each run then has its own")


def wandb_sweep(
    run: Path, settings: Mapping[str, str], points: Sequence[Mapping[str, str]], metric: str, target: str | None
) -> str:
    """The file's text: `points` are what each run lays over the run file `run`, and `settings` what all do. Raises UserError.

    W&B's grid has every combination, so all points must set the same settings.
    """
    names = list(points[0])
    odd = next((point for point in points if list(point) != names), None)
    if odd is not None:
        own = next(name for name in [*odd, *names] if name not in names or name not in odd)
        at = f"has a rule with a setting of its own ({own}), which W&B's grid cannot hold"
        raise UserError("--rules", at, f"leave it out, or give --{own} for all rules")
    higher = read_target(target).higher if target else direction(metric, "--metric")
    fixed = [part for name, value in settings.items() for part in (f"--{name}", value)]
    tree: dict[str, Any] = {
        "program": "widebatch",
        "method": "grid",
        "metric": {"name": metric, "goal": "maximize" if higher else "minimize"},
        "parameters": {name: {"values": list(dict.fromkeys(_plain(point[name]) for point in points))} for name in names},
        "command": ["widebatch", "train", str(run), *fixed, "${args}"],
    }
    head = f"# wandb sweep FILE, then on each machine, where {shlex.quote(str(run))} is: wandb agent ENTITY/PROJECT/SWEEP\n"
    return head + yaml.safe_dump(tree, sort_keys=False)


def _plain(text: str) -> int | str:
    """A number as one, so that W&B draws it on an axis."""
    return int(text) if text.isdigit() else text
