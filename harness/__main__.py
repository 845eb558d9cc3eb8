"""The worker: `accelerate launch ... -m harness RUN.yaml [--section.field VALUE ...]`, or torchrun, deepspeed, srun."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.config.errors import UserError
from harness.config.flags import Parser, add_settings, parse
from harness.config.loader import load
from harness.config.user_errors import show
from harness.plan.rank_env import settle
from harness.plan.world import check_world
from harness.supervision.exit_codes import USER, run_rank
from harness.supervision.imports import uncollected
from harness.supervision.launch_env import launched
from harness.supervision.output_redirect import say
from harness.supervision.rank_monitor import present
from harness.supervision.seat import take_seat


def main(argv: Sequence[str]) -> int:
    """Run one worker process; its exit status."""
    sys.excepthook = show
    parser = Parser(prog="python -m harness", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN.yaml", type=Path, help="the run file")
    parser.add_argument("--no-plan", action="store_true", help="do not print the plan: the launcher has printed it")
    parser.add_argument("--ranks", metavar="N[:M]", default="", help="refuse to start with fewer than N or more than M ranks")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # deepspeed adds it; LOCAL_RANK says the same
    add_settings(parser)
    try:
        started = "RANK" in os.environ
        here = settle(os.environ)
        told = launched(os.environ)
        if told is not None and told.in_place and here.size > 1:
            take_seat(told, here.rank, here.size)
    except UserError as e:
        say(f"error: {e}")
        return USER
    with present(os.environ, here, started=started or here.size > 1) as presence:
        try:
            args, settings = parse(parser, argv)
            if args.ranks:
                check_world(here, args.ranks)
            config = load(args.run, settings)
            with uncollected():
                from harness.worker import work

            return work(config, args.run.stem, os.environ, presence, show_plan=not args.no_plan)
        except UserError as e:
            where = f"rank {here.rank}: " if here.rank else ""
            presence.heartbeat.ended(USER, f"{where}{e}")
            if presence.launched is None:
                say(f"error: {where}{e}")
            return USER


if __name__ == "__main__":
    run_rank(main)
