"""The run folder as the launcher leaves it: enough to repeat or resume the run."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from harness.config.plain_file import read_plain
from harness.config.run_folder import RunFolder
from harness.config.schema import Config
from harness.plan.plan_warnings import SHOWN
from harness.supervision.output_redirect import echo
from harness.supervision.safe_files import make_own, renew_own

MOST = 16 << 20
"""Bytes of a plan.json that is read."""


def own_place(config: Config, folder: Path, member: str = "") -> Config:
    """`config` as a run in `folder` that shares neither run folder nor checkpoints with any other run.

    Every tool that makes runs of a user's run file calls it. A trial keeps its checkpoints in its own folder; the `member` of a
    group that the user asked for, such as a job array, keeps them under that name where the user said (`checkpoint.dir`).
    """
    kept = f"{config.checkpoint.dir.rstrip('/')}/{member}" if config.checkpoint.dir and member else None
    return replace(
        config,
        run=replace(config.run, dir=str(folder)),
        checkpoint=replace(config.checkpoint, dir=kept),
    )


def write(folder: Path, files: Mapping[str, str], *, dry: bool) -> None:
    """Write files into a folder, each whole or not at all, so that several hosts may write the same ones. Dry: print them."""
    for name, text in files.items():
        if dry:
            echo(f"# {folder / name}\n{text}")
            continue
        make_own(folder)
        renew_own(folder / name, text)


def warned(folder: Path) -> frozenset[str]:
    """Codes of the warnings that the run's last start has shown, by its plan.json; none where it was not started."""
    try:
        tree = json.loads(read_plain(RunFolder(folder).plan, MOST))
        return frozenset(w["code"] for w in tree["warnings"][:SHOWN])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return frozenset()
