"""widebatch verify RUN.yaml: do N ranks compute what one process computes? On this machine, with the user's own model and data."""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from harness.plan.decode import load
from harness.plan.errors import UserError
from harness.plan.flags import add_settings, parse
from harness.plan.plan import plan
from launch.asking import add_world, asked_world, check_here, dataset, run_parser
from launch.command import accelerate_file, worker_command
from launch.commands import COMMANDS
from launch.folder import run_files, write
from launch.local import run


def main(argv: Sequence[str]) -> int:
    """Status 0 where they do, 1 where they do not. Raises UserError."""
    parser = run_parser("verify", COMMANDS["verify"])
    add_world(parser)
    add_settings(parser)
    args, settings = parse(parser, argv)
    config, world = load(args.run, settings), asked_world(args)
    if world.nodes > 1:
        at = f"is {world.nodes}, but this starts processes on this machine only"
        raise UserError("--nodes", at, "start `-m harness.verifying RUN.yaml` with the launcher of your cluster")
    check_here(world)
    planned = plan(config, world, dataset(config))
    with tempfile.TemporaryDirectory(prefix="widebatch-verify-") as name:
        folder = Path(name)
        config = replace(config, run=replace(config.run, dir=None))
        write(folder, run_files(config, planned) | {"accelerate.yaml": accelerate_file(planned, world)}, dry=False)
        found = folder / "found.json"
        command = worker_command(sys.executable, name, world, "harness.verifying", ("--out", str(found)))
        status = run(command)
        if status or not found.exists():
            return status or 1
        return int(any(f["verdict"] == "differs" for f in json.loads(found.read_text())))
