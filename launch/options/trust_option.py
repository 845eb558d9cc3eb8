"""--trust: code and stores that a run folder names are used where this user made that folder, or says so."""

import argparse
from collections.abc import Container, Mapping
from pathlib import Path

from harness.config.errors import UserError, redacted
from harness.config.loader import load
from harness.config.run_folder import JOURNAL, PLAN
from harness.config.schema import Config
from harness.supervision.output_redirect import say

WRITTEN = (PLAN, JOURNAL)
"""What a run file lies beside in a run folder; a run file elsewhere is a script that the user chose to run."""
CODE = ("recipe.use", "optim.name", "scaling.rule", "watch.use")
STORE = "checkpoint.dir"


def add_trust(parser: argparse.ArgumentParser) -> None:
    """The flag."""
    what = "run the code and read the store that a run folder of somebody else names; that code runs with your rights"
    parser.add_argument("--trust", action="store_true", help=what)


def load_run(args: argparse.Namespace, settings: Mapping[str, str]) -> Config:
    """The run file that a command was given, with its flags. Raises UserError, also where it lies in a folder not to be trusted."""
    config = load(args.run, settings)
    if _lies_in_run(args.run):
        check_trust(args.run, config, settings, trust=args.trust)
    return config


def load_own(args: argparse.Namespace, settings: Mapping[str, str]) -> Config:
    """The same, of a run that is to go on in its own folder. Raises UserError where the run file lies in another run folder, which
    was renamed or copied: the run would begin again at the old path, or go on with another one's checkpoints."""
    config, here = load_run(args, settings), args.run.parent
    named = None if "run.dir" in settings or config.run.dir is None else Path(config.run.dir)
    if named is not None and _lies_in_run(args.run) and not (named.exists() and named.samefile(here)):
        at = f"is {named} in {args.run}, which lies in another run folder"
        raise UserError("run.dir", at, f"add --run.dir {here} to go on with the run there, or --run.dir {named} for that one")
    return config


def _lies_in_run(run: Path) -> bool:
    return any((run.parent / name).is_file() for name in WRITTEN)


def check_trust(run: Path, config: Config, given: Container[str], *, trust: bool) -> None:
    """Say what of `config` the run file of a run folder has run or fetched: all but the settings that are `given` otherwise.

    Raises UserError if this user neither made that folder nor gave `trust`.
    """
    from harness.supervision.folder_seal import foreign, is_sealed

    for setting, name in foreign(config).items():
        if setting in given:
            continue
        if not trust and not is_sealed(run.parent, setting, name):
            at = f"{run} names {name}, and has no seal that shows you made that folder"
            raise UserError(setting, at, "look at what it names, and add --trust to use it")
        say(f"note: {run} names {redacted(name)}, which is {'read' if setting == STORE else 'run'} now")
