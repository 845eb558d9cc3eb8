"""Flags over the run file: `--batch.total 4096` for every setting, documented from the docstring under its field.

A flag's value goes through the same decoding as the file's, so both give the same one-line errors.
"""

import argparse
import ast
import inspect
import re
from collections.abc import Sequence
from typing import NoReturn

from harness.plan import config as config_module
from harness.plan.errors import UserError, did_you_mean

_PREFIX = "set:"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UserErrors: one line, with a remedy."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing usage."""
        what, _, problem = message.removeprefix("argument ").partition(": ")
        raise UserError(what or self.prog, problem or "not understood", f"see {self.prog} --help")


def field_docs() -> dict[str, str]:
    """The docstring under each field of the run file, by dotted name, in the order of the file."""
    tree = ast.parse(inspect.getsource(config_module))
    classes = {n.name: n for n in tree.body if isinstance(n, ast.ClassDef)}
    docs: dict[str, str] = {}

    def collect(prefix: str, kind: ast.ClassDef) -> None:
        for node, after in zip(kind.body, [*kind.body[1:], None], strict=True):
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            inner = classes.get(ast.unparse(node.annotation))
            name = prefix + node.target.id
            if inner:
                collect(f"{name}.", inner)
            elif isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                docs[name] = str(after.value.value)

    collect("", classes["Config"])
    return docs


def add_settings(parser: argparse.ArgumentParser) -> None:
    """One flag for each setting of the run file."""
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, doc in field_docs().items():
        if name == "recipe.knobs":
            name, doc = "recipe.NAME", "Any knob of the recipe."
        section = name.partition(".")[0]
        group = groups.setdefault(section, parser.add_argument_group(section))
        help_text = doc.replace("%", "%%")
        group.add_argument(f"--{name}", dest=_PREFIX + name, metavar="VALUE", default=argparse.SUPPRESS, help=help_text)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """The parser's own arguments, and the settings given as flags. Raises UserError on a flag nobody knows."""
    args, rest = parser.parse_known_args(argv)
    settings = {k.removeprefix(_PREFIX): v for k, v in vars(args).items() if k.startswith(_PREFIX)}
    known = [option for action in parser._actions for option in action.option_strings]
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if not re.fullmatch(r"--[a-z_0-9]+\.\w+", flag):
            remedy = did_you_mean(flag, known) if flag.startswith("-") else f"see {parser.prog} --help"
            raise UserError(flag, "is not understood here", remedy)
        if not equals:
            if not rest:
                raise UserError(flag, "has no value", f"write {flag} VALUE")
            value = rest.pop(0)
        settings[flag.removeprefix("--")] = value
    return args, settings
