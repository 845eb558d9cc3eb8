"""widebatch demo: a small real training run in two processes on the CPU, from any folder."""

from collections.abc import Sequence

from harness.config.flags import Parser, add_settings, parse
from launch.commands import launch
from launch.commands.configs import FOLDER
from launch.options.commands import COMMANDS


def main(argv: Sequence[str]) -> int:
    """`widebatch launch` of the digits that come with the package. Raises UserError."""
    parser = Parser(prog="widebatch demo", description=COMMANDS["demo"], allow_abbrev=False)
    add_settings(parser)
    parse(parser, argv)
    return launch.main([str(FOLDER / "digits.yaml"), "--gpus", "0", "--procs", "2", *argv])
