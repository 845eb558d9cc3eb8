"""widebatch train RUN.yaml: the run in this process."""

import os
from collections.abc import Sequence

from harness.plan.decode import load
from harness.plan.errors import UserError
from harness.plan.flags import add_settings, parse
from harness.plan.world import ALONE
from harness.survive.presence import present
from launch.asking import AGAINST, run_parser
from launch.commands import COMMANDS
from launch.evidence import add_from, measured_flags


def main(argv: Sequence[str]) -> int:
    """Raises UserError."""
    parser = run_parser("train", COMMANDS["train"])
    what = "play this many ranks in turn on one device: same samples, same learning rate, same losses as the real run"
    parser.add_argument("--simulate-world", type=int, metavar="N", help=what)
    parser.add_argument("--against", metavar="RUN", help=AGAINST)
    add_from(parser)
    add_settings(parser)
    args, settings = parse(parser, argv)
    settings = measured_flags(args.measured, args.run, settings)
    if args.against is not None:
        settings["watch.against"] = args.against
    config = load(args.run, settings)
    if args.simulate_world is not None and args.simulate_world < 1:
        raise UserError("--simulate-world", f"is {args.simulate_world}", "give at least 1")
    from harness.worker import work

    with present(os.environ, ALONE, started=False) as presence:
        return work(config, args.run.stem, os.environ, presence, simulate=args.simulate_world)
