"""widebatch plan | train | launch | export | dashboard: the command line. Planning imports no torch and starts nothing."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from rich.console import Console

from harness.plan.config import Config
from harness.plan.decode import load
from harness.plan.errors import UserError, did_you_mean
from harness.plan.flags import Parser, add_settings, parse
from harness.plan.lengths import needs_dataset
from harness.plan.plan import Plan, plan
from harness.plan.world import World
from harness.watch.table import plan_table, warning_lines
from launch import dashboard, export
from launch.folder import write_folder
from launch.local import gpu_count, run

COMMANDS = {
    "plan": "print every number of the run with its reason; start nothing",
    "train": "train in this process: one GPU or the CPU, debugger and breakpoints welcome",
    "launch": "write the run folder and start one process per GPU with accelerate launch",
    "export": export.HELP,
    "dashboard": dashboard.HELP,
}
OVERVIEW = """usage: widebatch COMMAND RUN.yaml [--section.setting VALUE ...]

Take a training recipe tuned at one batch to any number of GPUs.

{commands}

widebatch COMMAND --help explains every flag, and why one would want it."""


def main(argv: Sequence[str] | None = None) -> int:
    """The console script. Status 0, or 2 for a mistake of the user, 3 where the guard stopped a run, else the workers'."""
    name, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        if name in ("-h", "--help"):
            print(OVERVIEW.format(commands="\n".join(f"  {c:<10}{text}" for c, text in COMMANDS.items())))
            return 0
        if name not in COMMANDS:
            raise UserError("widebatch", f"{name!r} is no command", did_you_mean(name, list(COMMANDS)))
        if name in ("export", "dashboard"):
            return export.main(rest) if name == "export" else dashboard.main(rest)
        args, settings = parse(_parser(name), rest)
        if name in ("train", "launch") and args.against is not None:
            settings["watch.against"] = args.against
        command = {"plan": _plan, "train": _train, "launch": _launch}[name]
        return command(args, load(args.run, settings))
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2


def _parser(name: str) -> Parser:
    parser = Parser(prog=f"widebatch {name}", description=COMMANDS[name], allow_abbrev=False)
    parser.add_argument("run", metavar="RUN.yaml", type=Path, help="the run file: wishes in samples and epochs")
    if name in ("plan", "launch"):
        parser.add_argument(
            "--gpus", type=int, help="GPUs over all nodes (default: those of this machine); 0: CPU ranks, see --procs"
        )
        parser.add_argument("--procs", type=int, default=1, help="CPU ranks with --gpus 0, to try a run without GPUs")
        parser.add_argument("--nodes", type=int, default=1, help="machines that the GPUs are spread over evenly")
    if name == "plan":
        parser.add_argument("--json", action="store_true", help="one JSON object, for other programs")
        parser.add_argument("--lr-at", metavar="STEPS", default="", help="also the learning rate at these steps: 0,100,1000")
    if name == "train":
        what = "play this many ranks in turn on one device: same samples, same learning rate, same losses as the real run"
        parser.add_argument("--simulate-world", type=int, metavar="N", help=what)
    if name in ("train", "launch"):
        parser.add_argument("--against", metavar="RUN", help="folder of a reference run: did the rule hold, at equal samples?")
    if name == "launch":
        parser.add_argument("--dry-run", action="store_true", help="print the files and the exact command, start nothing")
    add_settings(parser)
    return parser


def _world(args: argparse.Namespace) -> World:
    here = gpu_count(os.environ.get("CUDA_VISIBLE_DEVICES")) if args.gpus is None else args.gpus
    if here == 0:
        if args.procs < 1:
            raise UserError("--procs", f"is {args.procs}", "give at least 1")
        return World(args.procs, args.nodes, "cpu")
    return World(here, args.nodes, "gpu")


def _dataset(config: Config) -> int | None:
    """The size of the training set where only the recipe knows it: imports the recipe, and torch with it, and says so."""
    if config.recipe.samples or not needs_dataset(config):
        return None
    print(f"note: recipe.samples is not stated, so {config.recipe.use} is imported to count its data", file=sys.stderr)
    from harness.parts.recipe import load_recipe

    return len(load_recipe(config.recipe).data("train"))


def _plan(args: argparse.Namespace, config: Config) -> int:
    planned = plan(config, _world(args), _dataset(config))
    rates = {step: planned.lr(step) for step in _steps(args.lr_at)}
    if args.json:
        tree = planned.to_json() | ({"lr_at": {str(k): v for k, v in rates.items()}} if rates else {})
        print(json.dumps(tree, indent=1))
        return 0
    _show(planned)
    for step, rate in rates.items():
        print(f"lr at step {step:,}: {rate:.6g}")
    return 0


def _steps(text: str) -> list[int]:
    try:
        steps = [int(part) for part in text.split(",") if part]
    except ValueError as e:
        raise UserError("--lr-at", f"is {text!r}", "give whole steps such as 0,100,1000") from e
    if any(step < 0 for step in steps):
        raise UserError("--lr-at", f"is {text!r}", "steps count from 0")
    return steps


def _show(planned: Plan) -> None:
    console = Console(soft_wrap=False)
    console.print(plan_table(planned))
    for line in warning_lines(planned):
        console.print(line, soft_wrap=True)


def _train(args: argparse.Namespace, config: Config) -> int:
    from harness.worker import work

    if args.simulate_world is not None and args.simulate_world < 1:
        raise UserError("--simulate-world", f"is {args.simulate_world}", "give at least 1")
    return work(config, args.run.stem, os.environ, simulate=args.simulate_world)


def _launch(args: argparse.Namespace, config: Config) -> int:
    world = _world(args)
    if world.nodes > 1 and not args.dry_run:
        raise UserError("--nodes", f"is {world.nodes}, but this starts processes on this machine only", "use --dry-run, or 1")
    if not args.dry_run and world.device == "gpu":
        here = gpu_count(os.environ.get("CUDA_VISIBLE_DEVICES"))
        if world.size > here:
            raise UserError("--gpus", f"{world.size} asked for, {here} here", "ask for fewer, use --gpus 0 --procs N, or --dry-run")
    planned = plan(config, world, _dataset(config))
    folder = Path(config.run.dir or f"runs/{args.run.stem}-{datetime.now():%Y%m%d-%H%M%S}").resolve()
    config = replace(config, run=replace(config.run, dir=str(folder)))
    command = write_folder(config, planned, world, folder, sys.executable, dry=args.dry_run)
    _show(planned)
    print(f"\n$ {command}", flush=True)
    return 0 if args.dry_run else run(command)
