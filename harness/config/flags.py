"""Flags over the run file: `--batch.total 4096` for every setting, documented from the docstring under its field.

`batch.total=4096` says the same, as `wandb agent` writes it for `${args_no_hyphens}`. A flag's value goes through the same decoding
as the file's, so both give the same one-line errors.
"""

import argparse
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

from harness.config.errors import UserError, nearest
from harness.config.step_units import STEPS

_PREFIX = "set:"
"""Prefix of the names under which the parser keeps the settings of the run file."""
_SETTING = re.compile(r"--[a-z_0-9]+\.\w+")
_BARE = re.compile(r"[A-Za-z_][\w-]*(\.\w+)?=")


ELSEWHERE = {
    "learning_rate": "--optim.lr",
    "batch_size": "--batch.per_gpu",
    "per_device_train_batch_size": "--batch.per_gpu",
    "num_epochs": "--schedule.epochs",
    "num_train_epochs": "--schedule.epochs",
    "lr_scheduler_type": "--schedule.shape",
    "output_dir": "--run.dir",
}
"""Other trainers' names of settings."""
LAUNCHERS = ("--gpus", "--procs", "--nodes")
"""Flags of the commands that start or plan several processes."""
MOST_USED = ("batch.per_gpu", "batch.total", "optim.lr", "schedule.epochs", "backend.name", "run.dir")
"""The settings that `--help` shows; `--help-all` shows all."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UserErrors: one line, with a remedy.

    `add_settings` leaves it a function that adds the flags of settings, by their names: they cost 10 ms, and only a help text, or
    a flag that is not spelled out, needs them.
    """

    add_flags: Callable[[Sequence[str]], None] | None = None

    def add_all(self, names: Sequence[str] = ()) -> None:
        """Add the flags of all settings (for a help text of `names` alone), unless they were added or this parser takes none."""
        add, self.add_flags = self.add_flags, None
        if add is not None:
            add(names)

    def settings(self) -> list[str]:
        """The flags of all settings."""
        self.add_all()
        return [option for action in self._actions if action.dest.startswith(_PREFIX) for option in action.option_strings]

    def format_help(self) -> str:
        """The help text: the command's own arguments, and the settings that are used most unless all were added before."""
        if self.add_flags is not None:
            self.add_all(MOST_USED)
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing usage."""
        what, _, problem = message.removeprefix("argument ").partition(": ")
        raise UserError(what if problem else self.prog, problem or message, f"see {self.prog} --help")


class _HelpAll(argparse.Action):
    """--help-all: the help text with every setting, by section."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        assert isinstance(parser, Parser)  # noqa: S101  add_settings takes no other
        parser.add_all()
        parser.print_help()
        parser.exit()


def add_settings(parser: Parser) -> None:
    """One flag for each setting of the run file; call it last."""
    what = "show this, and every setting of the run file with its values and its default"
    parser.add_argument("--help-all", action=_HelpAll, nargs=0, default=argparse.SUPPRESS, help=what)
    arguments = [a.metavar or a.dest for a in parser._actions if not a.option_strings]
    parser.usage = " ".join([parser.prog, "[flags]", *map(str, arguments), "[--section.setting VALUE ...]"])
    parser.add_flags = partial(_add_settings, parser)


def _add_settings(parser: argparse.ArgumentParser, names: Sequence[str] = ()) -> None:
    """The flags of the settings, in groups by section; where only some are asked for, in one group."""
    from harness.config.field_docs import field_docs
    from harness.config.setting_values import setting_values

    values = setting_values()
    docs = field_docs()
    most = f"settings used most ({parser.prog} --help-all shows all {len(docs)})"
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name in names or docs:
        knobs = name == "recipe.knobs"
        shown, doc = ("recipe.NAME", "Any field of the recipe.") if knobs else (name, f"{docs[name]} {values[name]}")
        section = most if names else shown.partition(".")[0]
        group = groups.get(section) or groups.setdefault(section, parser.add_argument_group(section))
        help_text = doc.replace("%", "%%")
        group.add_argument(f"--{shown}", dest=_PREFIX + shown, metavar="VALUE", default=argparse.SUPPRESS, help=help_text)


def parse(parser: Parser, argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """The parser's own arguments, and the settings given as flags. Raises UserError on a flag nobody knows."""
    own, settings = _settings_first(parser, argv)
    try:
        args, rest = parser.parse_known_args(own)
    except UserError as e:
        taken = next((flag for flag, value in settings.items() if _is_run_file(value)), None)
        if taken is None or any(not text.startswith("-") for text in own):
            raise
        at = f"consumed the run file {settings[taken]} as its value"
        raise UserError(f"--{taken}", at, f"write --{taken} VALUE before it") from e
    if rest:
        flag = rest[0].partition("=")[0]
        raise UserError(flag, "is not a known argument", _remedy(flag, parser))
    return args, settings


def _remedy(flag: str, parser: Parser) -> str:
    """What to write instead of an argument that is not known."""
    name, knob, see = flag.lstrip("-"), f"--recipe.{flag.lstrip('-')}", f"see {parser.prog} --help"
    if not flag.startswith("-"):
        return see
    if flag in LAUNCHERS:
        return f"`widebatch launch` and `widebatch plan` take it; {see}"
    parser.add_all()
    options = [option for action in parser._actions for option in action.option_strings]
    by_name = {option.lstrip("-").rpartition(".")[2]: option for option in reversed(options)}
    near = ELSEWHERE.get(name.replace("-", "_"), "")
    if near not in options:
        near = by_name.get(nearest(name, list(by_name), cutoff=0.75) or "", "")
    hint = f"a field of the recipe is set by {knob}; " if flag.startswith("--") and _SETTING.fullmatch(knob) else ""
    return f"did you mean {near}?" if near else f"{hint}{see}"


def _settings_first(parser: Parser, argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """(the arguments that are the parser's own, the settings with their values).

    argparse does not know the knobs of a recipe, and would take their values for the run file. Raises UserError.
    """
    known = {option: action for action in parser._actions for option in action.option_strings}
    own, settings, left = list[str](), dict[str, str](), list(argv)
    bare = parser.add_flags is not None or any(action.dest.startswith(_PREFIX) for action in parser._actions)
    while left:
        text = left.pop(0)
        is_value = bool(own) and _awaits_value(known.get(own[-1]))
        if bare and _BARE.match(text) and not is_value and not _is_run_file(text):
            text = f"--{text}"
        flag, equals, value = text.partition("=")
        action = known.get(flag)
        flag = _spelled(flag, parser) if action is None else flag
        if action is None and _is_setting(flag, parser):
            settings[flag[2:]] = value if equals else _next_value(flag, left)
        elif action is not None and action.nargs == "?" and not equals and left and _is_run_file(left[0]):
            own.append(f"{flag}={action.const}")  # a flag with an optional value, as in `--k8s run.yaml`
        else:
            own.append(f"{flag}{equals}{value}")
    return own, settings


def _next_value(flag: str, left: list[str]) -> str:
    """The value of a setting from the arguments that are left. Raises UserError if there is none."""
    if not left or left[0].startswith("--"):
        raise UserError(flag, "has no value", f"write {flag} VALUE, or {flag}=VALUE where that begins with --")
    return left.pop(0)


def _awaits_value(action: argparse.Action | None) -> bool:
    """Whether what follows this flag of the parser's own is its value."""
    return action is not None and action.nargs not in (0, "?")


def _spelled(flag: str, parser: Parser) -> str:
    """A flag as the run file spells it: `_` for `-`, with its section. Raises UserError if several sections have it."""
    if not flag.startswith("--") or _SETTING.fullmatch(flag):
        return flag
    settings = parser.settings()
    plain = "--" + flag[2:].replace("-", "_")
    found = sorted(s for s in settings if s.endswith(f".{plain[2:]}"))
    if len(found) > 1:
        raise UserError(flag, f"may be {' or '.join(found)}", "give one of them")
    return found[0] if found else plain if _SETTING.fullmatch(plain) or _in_steps(plain) else flag


def _is_setting(flag: str, parser: Parser) -> bool:
    """Whether a flag that is no argument of the parser's own is a setting: with its section, or without, such as --precision."""
    if _SETTING.fullmatch(flag) or _in_steps(flag):
        return True
    return flag.startswith("--") and flag in parser.settings()


def _in_steps(flag: str) -> bool:
    """Whether a flag is a length in steps, such as --warmup_steps, which is answered as a setting is."""
    return flag.startswith("--") and STEPS.fullmatch(flag[2:]) is not None


def _is_run_file(text: str) -> bool:
    return text.endswith((".yaml", ".yml"))
