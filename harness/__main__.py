"""The worker: `accelerate launch ... -m harness RUN.yaml [--section.field VALUE ...]`, or torchrun, deepspeed, srun."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.plan.decode import load
from harness.plan.errors import UserError
from harness.plan.flags import Parser, add_settings, parse
from harness.plan.srun import variables
from harness.plan.world import check_world, place


def main(argv: Sequence[str]) -> int:
    """Run one worker process; its exit status."""
    parser = Parser(prog="python -m harness", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN.yaml", type=Path, help="the run file")
    parser.add_argument("--no-plan", action="store_true", help="do not print the plan: the launcher has printed it")
    parser.add_argument("--ranks", metavar="N[:M]", default="", help="refuse any other number of ranks than this")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # deepspeed adds it; LOCAL_RANK says the same
    add_settings(parser)
    try:
        args, settings = parse(parser, argv)
        os.environ.update(variables(os.environ))
        if args.ranks:
            check_world(place(os.environ), args.ranks)
        config = load(args.run, settings)
        from harness.worker import work

        return work(config, args.run.stem, os.environ, show_plan=not args.no_plan)
    except UserError as e:
        from harness.worker import report

        return report(e, place(os.environ).rank)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
