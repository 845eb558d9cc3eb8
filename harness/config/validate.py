"""Plain data -> a dataclass, strictly by its types: the first mistake is a UserError with its dotted path, value and remedy.

msgspec converts. It passes over fields that a dataclass does not have, so those are refused first.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from harness.config.errors import UserError, did_you_mean, nearest, redacted

T = TypeVar("T")
_PLACE = re.compile(r" - at `(?:key` in `)?\$([^`]*)`$")
"""Splits msgspec's messages at their end: "Expected `int` >= 1 - at `$.batch.reference`"."""
_BOUND = re.compile(r"Expected `\w+` ([<>]=?) (\S+)")
_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text, in quotes if it looks like a number",
    tuple: "a list, such as [1, 2]",
    list: "a list, such as [1, 2]",
}


def check(kind: type[T], tree: Mapping[str, Any], prefix: str = "") -> T:
    """A `kind` from plain data; `prefix` goes before the paths of its mistakes.

    Raises UserError, and TypeError where a field of `kind` has a type that plain data cannot fill.
    """
    _refuse_unknown(kind, tree, prefix)
    try:
        return msgspec.convert(tree, kind, strict=True)
    except msgspec.ValidationError as e:
        raise _explain(str(e), kind, tree, prefix) from None


def strip_caches(kind: type) -> None:
    """Remove what msgspec has cached on a class and on the classes of its fields:

    it cannot be pickled by value, which `datasets` does with everything that a function uses to compute its cache key.
    """
    seen, left = set[int](), list[Any]([kind])
    while left:
        one = left.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, type) and "__msgspec_cache__" in vars(one):
            del one.__msgspec_cache__  # type: ignore[attr-defined]
        left += get_type_hints(one).values() if dataclasses.is_dataclass(one) else get_args(one)


def show(value: object) -> str:
    """A value as an error message shows it, cut to 60 characters, and no part of a credential."""
    text = redacted("none" if value is None else repr(value))
    return text if len(text) <= 60 else text[:57] + "..."


def _refuse_unknown(kind: Any, tree: Mapping[str, Any], prefix: str) -> None:
    hints = get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]
    for name, value in tree.items():
        if name not in names:
            raise UserError(f"{prefix}{name}", f"is {show(value)}, but there is no such setting", did_you_mean(str(name), names))
        if dataclasses.is_dataclass(hints[name]) and isinstance(value, Mapping):
            _refuse_unknown(hints[name], value, f"{prefix}{name}.")


def _explain(message: str, kind: Any, tree: Mapping[str, Any], prefix: str) -> UserError:
    """msgspec's message as setting, value and remedy."""
    what, place, *_ = [*_PLACE.split(message), ""]
    loc = re.findall(r"[^.\[\]]+", place)
    path, value, hint = prefix + ".".join(loc), _at(tree, loc), _hint(kind, loc)
    if "missing required field" in what:
        path += ("." if loc else "") + what.split("`")[1]
        return UserError(path, "missing", f"write {path} in the run file or give --{path}")
    if "of length" in what:
        form = "give two, such as [0.9, 0.999]" if loc[-1] == "betas" else "see --help for the form"
        return UserError(path, f"has the wrong number of values, {show(value)}", form)
    if bound := _BOUND.fullmatch(what):
        finite = not isinstance(value, float) or math.isfinite(value)
        return UserError(path, f"is {show(value)}", f"it must be {bound[1]} {_plain(bound[2])}" if finite else "it must be finite")
    verb = "choose" if all(get_origin(arm) is Literal for arm in _arms(hint)) else "give"
    return UserError(path, f"is {show(value)}", f"{_meant(hint, value)}{verb} {_words(hint)}")


def _meant(hint: Any, value: object) -> str:
    """A suggestion: the nearest choice, or the whole number that a text or float stands for; empty if there is none."""
    if int in _arms(hint) and (isinstance(value, str) or (isinstance(value, float) and value.is_integer())):
        digits = value.replace("_", "") if isinstance(value, str) else f"{value:.0f}"
        if digits.isdecimal():
            return f"write {int(digits)}: "
    choices = [choice for arm in _arms(hint) if get_origin(arm) is Literal for choice in get_args(arm)]
    near = nearest(value, choices) if isinstance(value, str) else None
    return f"did you mean {near}? " if near else ""


def _plain(number: str) -> str:
    """1.0 as 1, and whole numbers with all their digits."""
    return f"{float(number):g}" if "." in number else number


def _at(value: Any, loc: list[str]) -> Any:
    for part in loc:
        value = value[part] if isinstance(value, Mapping) else value[int(part)]
    return value


def _hint(hint: Any, loc: list[str]) -> Any:
    """The type at a path of fields and indices."""
    for part in loc:
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            hint = get_type_hints(hint)[part]
        else:
            items = next(get_args(arm) for arm in _arms(hint) if get_args(arm) and get_origin(arm) is not Literal)
            hint = items[0] if len(items) == 1 or items[-1] is Ellipsis else items[int(part)]
    return hint


def _arms(hint: Any) -> list[Any]:
    """The types of a union but None, or the one type; without bounds."""
    if get_origin(hint) is Annotated:
        return _arms(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return [one for arm in get_args(hint) if arm is not NoneType for one in _arms(arm)]
    return [hint]


def _words(hint: Any) -> str:
    """What values a type accepts, as text."""
    said = []
    for arm in _arms(hint):
        kind = get_origin(arm) or arm
        if kind is Literal:
            said += [str(choice) for choice in get_args(arm)]
        elif isinstance(kind, type) and issubclass(kind, Mapping):
            said.append("a mapping of names")
        else:
            said.append(_WORDS.get(kind) or f"a {kind.__name__}, which a run file cannot express")
    return " or ".join([", ".join(said[:-1]), said[-1]] if len(said) > 1 else said)
