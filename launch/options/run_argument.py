"""The run that a command was given, a run file or the folder of a run: read with its flags, what was measured, and trust."""

import argparse
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path

from harness.config.errors import UserError
from harness.config.flags import Parser, parse
from harness.config.loader import load
from harness.config.run_folder import RunFolder
from harness.config.schema import Config
from harness.plan.world import World
from launch.options.evidence_option import measured_flags
from launch.options.trust_option import add_trust, check_trust, load_own, load_run


def read_run(
    parser: Parser, argv: Sequence[str], world: Callable[[argparse.Namespace], World] = lambda args: World(1), *, own: bool = False
) -> tuple[argparse.Namespace, dict[str, str], Config]:
    """(the command's own arguments, the settings given as flags, the run file with both).

    `--from` and `--against` become settings where the command has them; a law of `--from` is for the `world` that is asked for.
    `own`: the run is to continue in its own folder, see load_own. Raises UserError.
    """
    args, settings = parse(parser, argv)
    given = vars(args)
    settings = measured_flags(given.get("measured"), args.run, settings, lambda: (load_run(args, settings), world(args)))
    if given.get("against") is not None:
        settings["watch.against"] = args.against
    return args, settings, load_own(args, settings) if own else load_run(args, settings)


def add_run_folder(parser: argparse.ArgumentParser) -> None:
    """The folder of a run as argument, and --trust."""
    parser.add_argument("run", metavar="RUN", type=run_folder, help="the folder that a run wrote")
    add_trust(parser)


def run_folder(text: str) -> Path:
    """A folder, also where the run file in it was given."""
    path = Path(text)
    return path.parent if path.is_file() else path


def read_run_folder(
    command: str, args: argparse.Namespace, unused: Container[str], settings: Mapping[str, str] | None = None
) -> Config:
    """The run file in the folder of a run, with `settings` over it. Code and stores of `unused` settings need no trust.

    Raises UserError if it is no run folder, or names what is not to be trusted.
    """
    file = RunFolder(args.run).run_file
    if not file.is_file():
        raise UserError(command, f"{args.run} is not a run folder: it has no {file.name}", "give the folder that a run wrote")
    config = load(file, settings or {})
    check_trust(file, config, unused, trust=args.trust)
    return config
