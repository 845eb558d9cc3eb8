"""widebatch launch RUN.yaml: the plan and the run folder in this process, training in others."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from harness.plan.config import Config
from harness.plan.decode import load
from harness.plan.errors import UserError
from harness.plan.flags import add_settings, parse
from harness.plan.plan import plan
from harness.plan.world import World
from harness.watch.table import print_plan
from launch.asking import AGAINST, add_world, asked_world, dataset, run_parser
from launch.folder import write_folder
from launch.local import gpu_count, run
from launch.worlds import add_bench, compare, print_hours, several

HELP = "write the run folder and start one process per GPU with accelerate launch"


def main(argv: Sequence[str]) -> int:
    """Raises UserError."""
    parser = run_parser("launch", HELP)
    add_world(parser)
    add_bench(parser)
    parser.add_argument("--against", metavar="RUN", help=AGAINST)
    parser.add_argument("--dry-run", action="store_true", help="print the files and the exact command, start nothing")
    add_settings(parser)
    args, settings = parse(parser, argv)
    if args.against is not None:
        settings["watch.against"] = args.against
    config = load(args.run, settings)
    if args.dry_run and several(args):
        return compare(config, args, dataset(config))
    world = asked_world(args)
    if not args.dry_run:
        _check_here(world)
    planned = plan(config, world, dataset(config))
    folder = run_folder(config, args)
    config = replace(config, run=replace(config.run, dir=str(folder)))
    command = write_folder(config, planned, world, folder, sys.executable, dry=args.dry_run)
    print_plan(planned)
    print_hours(args.bench, planned)
    print(f"\n$ {command}", flush=True)
    return 0 if args.dry_run else run(command)


def run_folder(config: Config, args: argparse.Namespace) -> Path:
    """Where the run lives: as the run file says, else a new folder."""
    return Path(config.run.dir or f"runs/{args.run.stem}-{datetime.now():%Y%m%d-%H%M%S}").resolve()


def _check_here(world: World) -> None:
    """Raises UserError where this machine cannot hold `world`."""
    if world.nodes > 1:
        raise UserError("--nodes", f"is {world.nodes}, but this starts processes on this machine only", "use --dry-run, or 1")
    if world.device == "gpu":
        here = gpu_count(os.environ.get("CUDA_VISIBLE_DEVICES"))
        if world.size > here:
            raise UserError("--gpus", f"{world.size} asked for, {here} here", "ask for fewer, use --gpus 0 --procs N, or --dry-run")
