"""Counts as people write them: 20k, 0.5M, 10B, 2T are 1e3, 1e6, 1e9, 1e12 times the number before the letter."""

import dataclasses
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from harness.config.errors import UserError

POWER = {"k": 3, "M": 6, "B": 9, "T": 12}
PATTERN = r"^[0-9]+(\.[0-9]+)?[kMBT]$"
"""The written form, for editors and for `amount`."""
MARK = "amount"
"""Key in the `extra` of a type's Meta: settings of this type may be written with a letter."""
MOST = 2**63 - 1
"""The largest count; floats and files hold no more."""
_LIKE = re.compile(r"[0-9.]+\s*[A-Za-z]+")


def amount(setting: str, text: str) -> int:
    """The whole number that a text such as 0.5M stands for. Raises UserError."""
    if not re.match(PATTERN, text):
        raise UserError(setting, f"is {text!r}", "give a whole number, or one with k, M, B or T after it, such as 20k or 0.5M")
    number = Fraction(text[:-1]) * 10 ** POWER[text[-1]]
    if number.denominator != 1:
        raise UserError(setting, f"is {text!r}, which is {float(number):g}", "give a whole number")
    return _countable(setting, int(number))


def spelled_out(kind: type, section: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """A section of the run file with the amounts in it as numbers; `kind` is its dataclass. Raises UserError."""
    hints = get_type_hints(kind, include_extras=True)
    amounts = {f.name for f in dataclasses.fields(kind) if _is_amount(hints[f.name])}
    return {name: _number(f"{prefix}.{name}", value) if name in amounts else value for name, value in section.items()}


def _number(setting: str, value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_number(setting, item) for item in value]
    if isinstance(value, int):
        return _countable(setting, value)
    return amount(setting, value) if isinstance(value, str) and _LIKE.fullmatch(value) else value


def _countable(setting: str, number: int) -> int:
    if number > MOST:
        raise UserError(setting, f"is {number!s:.40}, more than can be counted", f"give at most {MOST:,}")
    return number


def _is_amount(hint: Any) -> bool:
    """Whether a type, or a part of it, is marked as an amount."""
    if get_origin(hint) is Annotated:
        return any(MARK in (getattr(meta, "extra", None) or ()) for meta in get_args(hint)[1:])
    return any(_is_amount(part) for part in get_args(hint))
