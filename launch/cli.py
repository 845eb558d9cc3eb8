"""widebatch COMMAND: only the module of the command asked for is imported. Planning imports no torch and starts nothing."""

import os
import select
import sys
from collections.abc import Sequence
from importlib import import_module

from harness.plan.errors import UserError, did_you_mean
from launch.commands import COMMANDS

UNREAD = 141
OVERVIEW = """usage: widebatch COMMAND RUN.yaml [--section.setting VALUE ...]

Take a training recipe tuned at one batch to any number of GPUs.

{commands}

widebatch COMMAND --help explains every flag, and why one would want it."""


def main(argv: Sequence[str] | None = None) -> int:
    """The console script. Status 0, or 2 for a mistake of the user, 3 where the guard stopped a run, else the workers'.

    141 (128 + SIGPIPE), without a word, where whoever read the output has gone, as in `widebatch report RUN --json | head`.
    """
    try:
        try:
            return _command(list(sys.argv[1:] if argv is None else argv) or ["--help"])
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        return UNREAD


def _command(argv: Sequence[str]) -> int:
    name, *rest = argv
    try:
        if name in ("-h", "--help"):
            print(OVERVIEW.format(commands="\n".join(f"  {c:<11}{text}" for c, text in COMMANDS.items())))
            return 0
        if name not in COMMANDS:
            raise UserError("widebatch", f"{name!r} is no command", did_you_mean(name, list(COMMANDS)))
        return int(import_module(f"launch.{name.replace('-', '_')}").main(rest))
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2


def _reader_gone() -> bool:
    """Whether it is standard output that broke, and no other pipe or connection of a command."""
    watched = select.poll()
    watched.register(sys.stdout.fileno(), 0)
    return any(state & (select.POLLERR | select.POLLHUP) for _, state in watched.poll(0))
