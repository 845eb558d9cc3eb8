"""widebatch plan RUN.yaml: every number of the run with its reason."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from harness.config.errors import UserError
from harness.config.flags import add_settings
from harness.config.schema import Config
from harness.plan.for_tools import TOOLS, Tool, arguments_for, text_of
from harness.plan.plan import Plan, plan
from harness.plan.suggestion import suggest, suggestion_lines
from harness.plan.world import World
from harness.supervision.output_redirect import echo, say
from harness.watch.plan_table import print_plan
from launch.options.commands import COMMANDS
from launch.options.compare_plans import add_bench, compare, print_hours, said_hours, several
from launch.options.evidence_option import add_from
from launch.options.run_argument import read_run
from launch.options.run_options import add_world, asked_world, dataset, run_parser


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status. Raises UserError."""
    parser = run_parser("plan", COMMANDS["plan"])
    add_world(parser)
    add_bench(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object, for other programs")
    parser.add_argument("--lr-at", metavar="STEPS", default="", help="also the learning rate at these steps: 0,100,1000")
    memory = "also what a rank will need, from shapes alone: imports torch and the recipe, no GPU needed"
    parser.add_argument("--memory", action="store_true", help=memory)
    told = "the plan as the arguments of another tool: " + ", ".join(TOOLS)
    parser.add_argument("--for", dest="tool", metavar="TOOL", choices=TOOLS, help=told)
    guess = "propose batch, lr, weight decay and GPU hours from published laws, for recipe.parameters and the schedule's tokens"
    parser.add_argument("--suggest", action="store_true", help=guess)
    add_from(parser)
    add_settings(parser)
    args, _, config = read_run(parser, argv, asked_world)
    if args.tool and (several(args) or args.memory or args.lr_at):
        raise UserError("--for", f"is {args.tool}, one plan's arguments", "give one number of GPUs, and no --memory or --lr-at")
    if args.suggest:
        echo("\n".join(suggestion_lines(suggest(config), config.watch.peak_tflops, str(args.run))))
        return 0
    if several(args):
        return compare(config, args, dataset(config), as_json=args.json)
    planned = plan(config, asked_world(args), dataset(config))
    if args.tool:
        return _print_arguments(args.tool, config, planned, as_json=args.json)
    _print(args, planned, _memory(config, asked_world(args)) if args.memory else {})
    return 0


def _print(args: argparse.Namespace, planned: Plan, needs: Mapping[str, int]) -> None:
    """Print the plan, the rates of --lr-at and the bytes that a rank `needs`: as a table, or as JSON."""
    rates = {step: planned.lr(step) for step in _steps(args.lr_at)}
    if args.json:
        more = {"lr_at": {str(k): v for k, v in rates.items()}, "memory": needs}
        tree = planned.to_json() | said_hours(args.bench, planned) | {name: found for name, found in more.items() if found}
        echo(json.dumps(tree, indent=1))
        return
    print_plan(planned)
    print_hours(args.bench, planned)
    if needs:
        at = f"{needs['peak'] / 2**30:.3f} GiB of tensors at the peak of a step, {needs['state'] / 2**30:.3f} GiB between two"
        echo(f"memory of a rank: {at} (micro-batch {planned.micro_batch:,})")
    for step, rate in rates.items():
        echo(f"lr at step {step:,}: {rate:.6g}")


def _print_arguments(tool: Tool, config: Config, planned: Plan, *, as_json: bool) -> int:
    """Print the plan in another tool's words. Raises UserError."""
    made = arguments_for(tool, config, planned)
    if as_json:
        echo(json.dumps({"arguments": made.values, "notes": made.notes}, indent=1))
        return 0
    echo(text_of(tool, made))
    for note in made.notes if tool == "deepspeed" else ():
        say(f"note   {note}")
    return 0


def _memory(config: Config, world: World) -> dict[str, int]:
    """Bytes of one rank: weights in float32, state between steps, peak within one. Raises UserError."""
    from harness.engine.memory_estimate import predict

    return asdict(predict(config, world))


def _steps(text: str) -> list[int]:
    try:
        steps = [int(part) for part in text.split(",") if part]
    except ValueError as e:
        raise UserError("--lr-at", f"is {text!r}", "give whole steps such as 0,100,1000") from e
    if any(step < 0 for step in steps):
        raise UserError("--lr-at", f"is {text!r}", "steps count from 0")
    return steps
