"""widebatch top RUN: all ranks of a run, from its folder alone: while it runs, on whatever hosts, and after it ended."""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.analysis.journal_lines import read_back
from harness.analysis.run_record import mapping
from harness.config.errors import UserError
from harness.config.plain_file import read_plain
from harness.config.run_folder import RunFolder
from harness.supervision.output_redirect import echo
from harness.supervision.rank_status import read_ranks
from launch.options.commands import COMMANDS
from launch.options.run_argument import run_folder
from launch.processes.run_folder import MOST
from launch.report.ranks_text import Standing, ranks_text

LOOK_S = 1.0
PIPE_WIDTH = 200
"""Characters of a line where the output is no terminal."""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status. Raises UserError."""
    parser = argparse.ArgumentParser(
        prog="widebatch top",
        description=f"{COMMANDS['top']}. Reads the run folder and changes nothing. On a terminal it is renewed every second until "
        "the run ends or Ctrl-C; elsewhere it is printed once.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", type=run_folder, help="the folder that a run writes")
    parser.add_argument("--once", action="store_true", help="print once on a terminal, too")
    args = parser.parse_args(argv)
    if not RunFolder(args.run).run_file.is_file():
        raise UserError(
            "top", f"{args.run} is not a run folder: it has no {RunFolder(args.run).run_file.name}", "give the run.dir of a run"
        )
    if args.once or not sys.stdout.isatty():
        for line in _lines(args.run, _width(), None):
            echo(line)
        return 0
    from harness.watch.live_text import live

    live(lambda width, height: _lines(args.run, width, height), lambda: bool(_standing(args.run).ended), LOOK_S)
    return 0


def _width() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPE_WIDTH


def _lines(folder: Path, width: int, height: int | None) -> list[str]:
    return ranks_text(_standing(folder), read_ranks(folder), time.time(), width, height)


def _standing(folder: Path) -> Standing:
    """The run by its plan.json and the end of its journal."""
    files, plan = RunFolder(folder), {}
    with suppress(OSError, ValueError, RecursionError):
        plan = mapping(json.loads(read_plain(files.plan, MOST)))
    last: dict[str, Any] = {}
    window: dict[str, Any] = {}
    with suppress(OSError):
        for line in read_back(files.journal):
            last = last or line
            if line["event"] == "window":
                window = line
                break
    return Standing(str(folder), plan, window, last)
