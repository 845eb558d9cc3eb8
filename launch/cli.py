"""widebatch COMMAND: only the module of the command asked for is imported. Planning imports no torch and starts nothing."""

import select
import sys
from collections.abc import Sequence
from importlib import import_module
from types import TracebackType

from harness.config.errors import UserError, did_you_mean
from harness.supervision.imports import uncollected
from harness.supervision.output_redirect import OutputError, drop_output, echo, end_on_lost_output, open_missing, say
from launch.options.commands import COMMANDS, MODULES

UNREAD = 141
FAILED = 1
OVERVIEW = """usage: widebatch COMMAND RUN.yaml [--section.setting VALUE ...]

Take a training recipe tuned at one batch to any number of GPUs.

{commands}

widebatch COMMAND --help explains its flags and the settings used most, --help-all every setting; widebatch --version."""


def main(argv: Sequence[str] | None = None) -> int:
    """The console script. Status 0, or 2 for a mistake of the user, 3 where the guard stopped a run, else the workers'.

    141 (128 + SIGPIPE), without a word, where whoever read the output has gone, as in `widebatch report RUN --json | head`; 1, with
    one line, where the output's disk is full.
    """
    sys.excepthook = _show
    open_missing()
    end_on_lost_output()
    try:
        try:
            return _command(list(sys.argv[1:] if argv is None else argv) or ["--help"])
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_gone():
            raise
        drop_output()
        return UNREAD
    except OutputError as e:
        drop_output()
        say(f"error: {e.strerror}")
        return FAILED


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    from harness.config.user_errors import show  # imported only where an error is shown

    show(kind, error, trace)


def _command(argv: Sequence[str]) -> int:
    name, *rest = argv
    try:
        if name in ("-h", "--help"):
            echo(OVERVIEW.format(commands="\n".join(f"  {c:<11}{text}" for c, text in COMMANDS.items())))
            return 0
        if name == "--version":
            from importlib.metadata import version

            echo(f"widebatch {version('widebatch')}")
            return 0
        if name not in COMMANDS:
            raise UserError("widebatch", f"unknown command {name!r}", did_you_mean(name, list(COMMANDS)))
        with uncollected():
            command = import_module(MODULES[name])
        return int(command.main(rest))
    except UserError as e:
        say(f"error: {e}")
        return 2


def _reader_gone() -> bool:
    """Whether it is standard output that broke, and no other pipe or connection of a command."""
    watched = select.poll()
    watched.register(sys.stdout.fileno(), 0)
    return any(state & (select.POLLERR | select.POLLHUP) for _, state in watched.poll(0))
