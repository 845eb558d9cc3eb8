"""Run files as YAML 1.2 text, read and written: what is written reads back as the same.

PyYAML reads YAML 1.1, where 064 is 52, 1:30 is 90 and off is false. Here the core schema of YAML 1.2 holds
(https://yaml.org/spec/1.2.2/, 10.3.2): null, true and false, whole numbers, other numbers. Everything else is text.
"""

import codecs
import re
from collections.abc import Hashable, Mapping
from typing import Any

import yaml

from harness.config.errors import UserError

TAG = "tag:yaml.org,2002:"
WORDS: dict[str, tuple[re.Pattern[str], str]] = {
    "null": (re.compile(r"~|null|Null|NULL|"), "~nN"),
    "bool": (re.compile(r"true|True|TRUE|false|False|FALSE"), "tTfF"),
    "int": (re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"), "-+0123456789"),
    "float": (
        re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
        "-+.0123456789",
    ),
}
"""Scalars that are not text: (tag, regular expression of the whole, its possible first characters)."""
MOST_DIGITS = 4000
"""The most digits of a whole number: Python itself refuses to parse many more."""
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class _Loader(yaml.SafeLoader):
    """safe_load as of YAML 1.2; a key written twice is refused, and so are aliases."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  PyYAML's own way to say it

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Aliases are refused: a few lines of them can stand for gigabytes."""
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not allowed", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key.start_mark)
            if key.value in seen:
                line = key.start_mark.line + 1
                raise UserError(str(key.value), f"written twice, again on line {line}", "keep one of them")
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def whole_number(self, node: yaml.ScalarNode) -> int:
        """`064` is 64; `0o17` and `0x1f` are 15 and 31. `!!int` before anything else is refused."""
        if not WORDS["int"][0].fullmatch(node.value):
            raise yaml.constructor.ConstructorError(None, None, f"{node.value!r} is not a whole number", node.start_mark)
        if len(node.value) > MOST_DIGITS:
            what = f"a whole number of {len(node.value):,} digits, more than any setting has"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark)
        return int(node.value, {"0o": 8, "0x": 16}.get(node.value[:2], 10))

    def number(self, node: yaml.ScalarNode) -> float:
        """`.5`, `5.`, `1e3`, `.inf`, `.nan`. `!!float` before anything else is refused."""
        if not WORDS["float"][0].fullmatch(node.value):
            raise yaml.constructor.ConstructorError(None, None, f"{node.value!r} is not a number", node.start_mark)
        return float(re.sub(r"\.(?=[inIN])", "", node.value))


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would take for a number, a boolean or null."""


_Loader.add_constructor(f"{TAG}int", _Loader.whole_number)
_Loader.add_constructor(f"{TAG}float", _Loader.number)
for _word, (_form, _first) in WORDS.items():
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(TAG + _word, re.compile(f"({_form.pattern})$"), [*_first, *([""] if _word == "null" else [])])


def from_yaml(text: str) -> Any:
    """The one YAML document in `text` as plain data.

    Raises UserError for a key written twice, else ValueError, which says where and what.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  _Loader is a SafeLoader
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(f"{where}not YAML: {getattr(e, 'problem', None) or str(e).splitlines()[0]}") from e
    except RecursionError:
        raise ValueError("nested too deep") from None


def decode_text(data: bytes) -> str:
    """The bytes of a text file: UTF-8 with or without a byte-order mark, or UTF-16 with one. Raises ValueError with the line."""
    encoding = "utf-16" if data.startswith(_UTF16) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as e:
        line, name = data[: e.start].count(b"\n") + 1, encoding.removesuffix("-sig").upper()
        raise ValueError(f"line {line}: byte 0x{data[e.start]:02x} is not {name} (saved in latin-1?)") from e


def to_yaml(tree: Mapping[str, Any]) -> str:
    """Plain data as YAML, in the order given."""
    text: str = yaml.dump(dict(tree), Dumper=_Dumper, sort_keys=False)
    return text
