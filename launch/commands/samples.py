"""widebatch samples RUN --step N | --sample K: which samples a step took, and which steps took a sample."""

import argparse
from collections.abc import Sequence

from harness.config.flags import Parser
from harness.supervision.output_redirect import echo
from launch.options.commands import COMMANDS
from launch.options.run_argument import add_run_folder, read_run_folder
from launch.options.trust_option import CODE, STORE


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status. Raises UserError."""
    parser = Parser(prog="widebatch samples", description=COMMANDS["samples"], allow_abbrev=False)
    add_run_folder(parser)
    which = parser.add_mutually_exclusive_group(required=True)
    steps = "the samples of this step; of several (12,57), those that are in all of them"
    which.add_argument("--step", type=_numbers, metavar="N[,M]", help=steps)
    which.add_argument("--sample", type=int, metavar="K", help="the steps that took this sample of the training data")
    args = parser.parse_args(argv)
    config = read_run_folder("samples", args, (*CODE[1:], STORE))
    from harness.tools.samples import samples_of_steps, steps_of_sample

    found = steps_of_sample(config, args.run, args.sample) if args.step is None else samples_of_steps(config, args.run, args.step)
    for line in found:
        echo(line)
    return 0


def _numbers(text: str) -> tuple[int, ...]:
    """`12`, or `12,57`."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of a step") from e
