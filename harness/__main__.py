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
from harness.survive.exits import FAILED, MEMORY, USER
from harness.survive.launched import VARIABLE
from harness.survive.presence import present


def main(argv: Sequence[str]) -> int:
    """Run one worker process; its exit status."""
    parser = Parser(prog="python -m harness", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN.yaml", type=Path, help="the run file")
    parser.add_argument("--no-plan", action="store_true", help="do not print the plan: the launcher has printed it")
    parser.add_argument("--ranks", metavar="N[:M]", default="", help="refuse any other number of ranks than this")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # deepspeed adds it; LOCAL_RANK says the same
    add_settings(parser)
    try:
        os.environ.update(variables(os.environ))
        here = place(os.environ)
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return USER
    with present(os.environ, here, started="RANK" in os.environ) as presence:
        try:
            args, settings = parse(parser, argv)
            if args.ranks:
                check_world(here, args.ranks)
            config = load(args.run, settings)
            from harness.worker import work

            return work(config, args.run.stem, os.environ, presence, show_plan=not args.no_plan)
        except UserError as e:
            where = f"rank {here.rank}: " if here.rank else ""
            presence.pulse.ended(USER, f"{where}{e}")
            if presence.launched is None:
                print(f"error: {where}{e}", file=sys.stderr)
            return USER


def leave(status: int) -> None:
    """End this process. One that failed under our launcher is waited for, to start again: everything is told and closed by now, and
    Python's own clearing away, which takes seconds where torch and DeepSpeed are loaded, is left out."""
    if status in (FAILED, MEMORY) and VARIABLE in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
