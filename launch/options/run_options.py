"""What the commands that take a run file share: its argument, the flags that say on what world, and the size of the data."""

import argparse
import os
from datetime import datetime
from pathlib import Path

from harness.config.allowed_names import new_folder
from harness.config.errors import UserError
from harness.config.flags import Parser
from harness.config.schema import Config
from harness.plan.durations import needs_dataset
from harness.plan.world import World
from harness.supervision.output_redirect import say
from launch.options.trust_option import add_trust

AGAINST = "folder of a reference run: did the rule hold, at equal samples?"


def run_parser(name: str, description: str) -> Parser:
    """The parser of `widebatch NAME RUN.yaml`; the settings of the run file are added last, by `add_settings`."""
    parser = Parser(prog=f"widebatch {name}", description=description, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN.yaml", type=Path, help="the run file: what is asked for, in samples and epochs")
    add_trust(parser)
    return parser


def add_world(parser: argparse.ArgumentParser) -> None:
    """--gpus, --procs and --nodes."""
    gpus = (
        "GPUs over all nodes (default: as many on each as this machine has); 0: CPU ranks, see --procs; "
        "several, 1,2,4,8: a table of plans"
    )
    parser.add_argument("--gpus", type=counts, metavar="N", help=gpus)
    parser.add_argument("--procs", type=int, default=1, help="CPU ranks with --gpus 0, to try a run without GPUs")
    nodes = "machines that the GPUs are spread over evenly; 2:4: start with 2, at most 4, and go on when some come or go"
    parser.add_argument("--nodes", type=_nodes, default=(1, 1), metavar="N[:M]", help=nodes)


def counts(text: str) -> tuple[int, ...]:
    """`8`, or `1,2,4,8`."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of GPUs") from e


def _nodes(text: str) -> tuple[int, int]:
    """`4`, or `2:4`: (fewest, most)."""
    low, colon, high = text.partition(":")
    try:
        return int(low), int(high if colon else low)
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of nodes") from e


def asked_world(args: argparse.Namespace) -> World:
    """The world that the flags of `add_world` ask for: of `--nodes 2:4` the largest. Raises UserError."""
    fewest, nodes = args.nodes
    if not 1 <= fewest <= nodes:
        raise UserError("--nodes", f"is {fewest}:{nodes}", "give at least 1, the smaller number first")
    if args.gpus is not None and len(args.gpus) > 1:
        raise UserError("--gpus", f"names {len(args.gpus)} worlds, and a run has one", "add --dry-run for a table of plans")
    here = _gpus_here() * nodes if args.gpus is None else args.gpus[0]
    if here == 0:
        if args.procs < 1:
            raise UserError("--procs", f"is {args.procs}", "give at least 1")
        return World(args.procs, nodes, "cpu")
    return World(here, nodes, "gpu")


def _gpus_here() -> int:
    from launch.processes.spawn import gpu_count  # which starts processes, and takes time to import

    return gpu_count(os.environ.get("CUDA_VISIBLE_DEVICES"))


def dataset(config: Config) -> int | None:
    """The size of the training set where only the recipe knows it: imports the recipe, and torch with it, and says so."""
    if config.recipe.samples or not needs_dataset(config):
        return None
    say(f"note: recipe.samples is not stated, so {config.recipe.use} is imported to count its data")
    from harness.recipes.base import load_recipe
    from harness.recipes.contract import train_split

    return len(train_split(load_recipe(config.recipe), config.run.seed))


def run_folder(config: Config, run: Path) -> Path:
    """Where the run lives: as the run file says, else a new folder."""
    return Path(config.run.dir or new_folder(run.stem, datetime.now())).resolve()


def check_here(world: World) -> None:
    """Raises UserError if this machine cannot hold its part of `world`."""
    if world.device == "gpu":
        here, wanted = _gpus_here(), world.size // world.nodes
        if wanted > here:
            raise UserError(
                "--gpus", f"{wanted} asked for here, {here} found", "ask for fewer, use --gpus 0 --procs N, or --dry-run"
            )
