"""widebatch verify RUN.yaml: do N ranks compute what one process computes? On this machine, with the user's own model and data."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace

from harness.config.errors import UserError
from harness.config.flags import add_settings
from harness.config.run_folder import ACCELERATE
from harness.plan.plan import plan
from harness.plan.run_files import run_files
from harness.supervision.temporary_folders import temporary_folder
from launch.lab.foreign_script import verify_script
from launch.options.commands import COMMANDS
from launch.options.run_argument import read_run
from launch.options.run_options import add_world, asked_world, check_here, dataset, run_parser
from launch.processes.command import accelerate_file, worker_command
from launch.processes.run_folder import write
from launch.processes.spawn import run


def main(argv: Sequence[str]) -> int:
    """Run the command: status 0 if ranks and one process agree, 1 if they differ. Raises UserError."""
    if "--" in argv:
        return verify_script(argv)
    parser = run_parser("verify", f"{COMMANDS['verify']}; `verify [--procs N] [--steps K] -- COMMAND` looks at any training script")
    add_world(parser)
    add_settings(parser)
    args, _, config = read_run(parser, argv)
    world = asked_world(args)
    if world.nodes > 1:
        at = f"is {world.nodes}, but this starts processes on this machine only"
        raise UserError("--nodes", at, "start `-m harness.tools.verify RUN.yaml` with the launcher of your cluster")
    check_here(world)
    planned = plan(config, world, dataset(config))
    with temporary_folder("widebatch-verify-") as folder:
        config = replace(config, run=replace(config.run, dir=None))
        write(folder, run_files(config, planned) | {ACCELERATE: accelerate_file(planned, world)}, dry=False)
        found = folder / "found.json"
        command = worker_command(sys.executable, str(folder), world, "harness.tools.verify", ("--out", str(found)))
        status = run(command)
        if status or not found.exists():
            return status or 1
        return int(any(f["verdict"] == "differs" for f in json.loads(found.read_text())))
