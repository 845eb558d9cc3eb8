"""widebatch plan RUN.yaml: every number of the run with its reason."""

import json
from collections.abc import Sequence

from harness.plan.decode import load
from harness.plan.errors import UserError
from harness.plan.flags import add_settings, parse
from harness.plan.plan import plan
from harness.watch.table import print_plan
from launch.asking import add_world, asked_world, dataset, run_parser
from launch.evidence import add_from, measured_flags
from launch.worlds import add_bench, compare, print_hours, said_hours, several

HELP = "print every number of the run with its reason; start nothing"


def main(argv: Sequence[str]) -> int:
    """Raises UserError."""
    parser = run_parser("plan", HELP)
    add_world(parser)
    add_bench(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object, for other programs")
    parser.add_argument("--lr-at", metavar="STEPS", default="", help="also the learning rate at these steps: 0,100,1000")
    add_from(parser)
    add_settings(parser)
    args, settings = parse(parser, argv)
    settings = measured_flags(args.measured, args.run, settings)
    config = load(args.run, settings)
    if several(args):
        return compare(config, args, dataset(config), as_json=args.json)
    planned = plan(config, asked_world(args), dataset(config))
    rates = {step: planned.lr(step) for step in _steps(args.lr_at)}
    if args.json:
        tree = (
            planned.to_json()
            | ({"lr_at": {str(k): v for k, v in rates.items()}} if rates else {})
            | said_hours(args.bench, planned)
        )
        print(json.dumps(tree, indent=1))
        return 0
    print_plan(planned)
    print_hours(args.bench, planned)
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
