"""widebatch plan RUN.yaml: every number of the run with its reason."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from harness.plan.config import Config
from harness.plan.decode import load
from harness.plan.errors import UserError
from harness.plan.flags import add_settings, parse
from harness.plan.plan import plan
from harness.plan.world import World
from harness.watch.table import print_plan
from launch.asking import add_world, asked_world, dataset, run_parser
from launch.commands import COMMANDS
from launch.evidence import add_from, measured_flags
from launch.worlds import add_bench, compare, print_hours, said_hours, several


def main(argv: Sequence[str]) -> int:
    """Raises UserError."""
    parser = run_parser("plan", COMMANDS["plan"])
    add_world(parser)
    add_bench(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object, for other programs")
    parser.add_argument("--lr-at", metavar="STEPS", default="", help="also the learning rate at these steps: 0,100,1000")
    memory = "also what a rank will need, from shapes alone: imports torch and the recipe, no GPU needed"
    parser.add_argument("--memory", action="store_true", help=memory)
    add_from(parser)
    add_settings(parser)
    args, settings = parse(parser, argv)
    settings = measured_flags(args.measured, args.run, settings)
    config = load(args.run, settings)
    if several(args):
        return compare(config, args, dataset(config), as_json=args.json)
    planned = plan(config, asked_world(args), dataset(config))
    rates = {step: planned.lr(step) for step in _steps(args.lr_at)}
    needs = _memory(config, asked_world(args)) if args.memory else {}
    if args.json:
        tree = (
            planned.to_json()
            | ({"lr_at": {str(k): v for k, v in rates.items()}} if rates else {})
            | said_hours(args.bench, planned)
            | ({"memory": needs} if needs else {})
        )
        print(json.dumps(tree, indent=1))
        return 0
    print_plan(planned)
    print_hours(args.bench, planned)
    if needs:
        at = f"{needs['peak'] / 2**30:.3f} GiB of tensors at the peak of a step, {needs['state'] / 2**30:.3f} GiB between two"
        print(f"memory of a rank: {at} (micro-batch {planned.micro_batch:,})")
    for step, rate in rates.items():
        print(f"lr at step {step:,}: {rate:.6g}")
    return 0


def _memory(config: Config, world: World) -> dict[str, int]:
    """Bytes of one rank: weights in float32, state between steps, peak within one. Raises UserError."""
    from harness.engine.predict import predict

    return asdict(predict(config, world))


def _steps(text: str) -> list[int]:
    try:
        steps = [int(part) for part in text.split(",") if part]
    except ValueError as e:
        raise UserError("--lr-at", f"is {text!r}", "give whole steps such as 0,100,1000") from e
    if any(step < 0 for step in steps):
        raise UserError("--lr-at", f"is {text!r}", "steps count from 0")
    return steps
