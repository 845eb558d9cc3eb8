"""widebatch train RUN.yaml: the run in this process."""

import os
import sys
from collections.abc import Sequence

from harness.config.errors import UserError
from harness.config.flags import add_settings
from harness.plan.rank_env import alone
from harness.plan.world import ALONE, World
from harness.supervision.imports import uncollected
from harness.supervision.output_redirect import outlive_readers, say
from harness.supervision.rank_monitor import present
from launch.options.commands import COMMANDS
from launch.options.evidence_option import add_from
from launch.options.run_argument import read_run
from launch.options.run_options import AGAINST, run_parser


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status. Raises UserError."""
    parser = run_parser("train", COMMANDS["train"])
    what = "simulate this many ranks in turn on one device: same samples, same learning rate, same losses as the real run"
    parser.add_argument("--simulate-world", type=int, metavar="N", help=what)
    parser.add_argument("--against", metavar="RUN", help=AGAINST)
    add_from(parser)
    add_settings(parser)
    args, _, config = read_run(parser, argv, lambda args: World(args.simulate_world or 1), own=True)
    if args.simulate_world is not None and args.simulate_world < 1:
        raise UserError("--simulate-world", f"is {args.simulate_world}", "give at least 1")
    outlive_readers()
    left_over = alone(os.environ)
    if left_over:
        say(f"note: {left_over}")
    if sys.stderr.isatty():  # a person waits for it
        say("starting: importing torch")
    with uncollected():
        from harness.worker import work

    with present(os.environ, ALONE, started=False) as presence:
        return work(config, args.run.stem, os.environ, presence, simulate=args.simulate_world)
