"""The worker: `accelerate launch ... -m harness RUN.yaml [--section.field VALUE ...]`, or torchrun, or srun."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.plan.decode import load
from harness.plan.errors import UserError
from harness.plan.flags import Parser, add_settings, parse
from harness.plan.world import place


def main(argv: Sequence[str]) -> int:
    """Run one worker process; its exit status."""
    parser = Parser(prog="python -m harness", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN.yaml", type=Path, help="the run file")
    parser.add_argument("--no-plan", action="store_true", help="do not print the plan: the launcher has printed it")
    add_settings(parser)
    try:
        args, settings = parse(parser, argv)
        config = load(args.run, settings)
        from harness.worker import work

        return work(config, args.run.stem, os.environ, show_plan=not args.no_plan)
    except UserError as e:
        from harness.worker import report

        return report(e, place(os.environ).rank)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
