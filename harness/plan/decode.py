"""YAML and flags -> Config, and back. Strict: every mistake is one line with its dotted path.

Precedence: default < run file < flag. Flags arrive as {"batch.total": "4096"} and are read as YAML scalars.
"""

import dataclasses
import json
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import yaml

from harness.plan.check import check, show
from harness.plan.config import EXCLUSIVE, Config, Knob, RecipeConfig
from harness.plan.errors import UserError, did_you_mean
from harness.plan.names import PROJECT, checked, checked_folder
from harness.plan.text import FLOAT

MAX_BYTES = 1_000_000


class _Loader(yaml.SafeLoader):
    """safe_load as of YAML 1.2: 1e-3 is a number, off and yes are text; and a key written twice is refused."""

    yaml_implicit_resolvers = {  # noqa: RUF012  PyYAML's own way to say it
        first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:bool"]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

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


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("true|True|TRUE|false|False|FALSE"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))


def load(path: Path, flags: Mapping[str, str] | None = None) -> Config:
    """Read a run file and lay typed flags over it. Raises UserError."""
    tree = read_yaml(path)
    _resolve_code(tree, path.resolve().parent)
    _inline_json(tree, path.resolve().parent)
    over: dict[str, Any] = {}
    for dotted, text in (flags or {}).items():
        _set(over, dotted, _scalar(dotted, text))
    _resolve_code(over, Path.cwd())
    _inline_json(over, Path.cwd())
    _replace_exclusive(tree, over)
    return decode(_merge(tree, over))


def read_yaml(path: Path) -> dict[str, Any]:
    """One YAML mapping from a file of at most MAX_BYTES. Raises UserError."""
    try:
        data = path.read_bytes()
    except OSError as e:
        raise UserError("run file", f"{path}: {e.strerror}", "give the path of a run file, such as configs/digits.yaml") from e
    if len(data) > MAX_BYTES:
        raise UserError("run file", f"{path} has {len(data)} bytes", f"a run file has at most {MAX_BYTES}")
    try:
        tree = yaml.load(data, Loader=_Loader)  # noqa: S506  _Loader is a SafeLoader
    except RecursionError:
        raise UserError("run file", f"{path} is nested too deep", "write sections of settings, two levels") from None
    except (yaml.YAMLError, ValueError) as e:
        mark = getattr(e, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        problem = getattr(e, "problem", None) or (str(e) if isinstance(e, ValueError) else "not readable")
        raise UserError("run file", f"{path}{where}: not YAML: {problem}", "mend that line") from e
    if not isinstance(tree, dict):
        kind = "nothing" if tree is None else f"a {type(tree).__name__}"
        raise UserError("run file", f"{path} holds {kind}, not sections", "write sections such as `batch: {reference: 64}`")
    return tree


def decode(tree: Mapping[str, Any]) -> Config:
    """A checked Config from plain dicts, lists and scalars. Raises UserError naming the dotted path."""
    tree = dict(tree)
    known = [f.name for f in dataclasses.fields(Config)]
    for name, section in tree.items():
        if name not in known:
            raise UserError(str(name), "unknown section", did_you_mean(str(name), known))
        if name != "precision" and not isinstance(section, Mapping):
            raise UserError(name, f"is {show(section)}, not a section", f"write `{name}: {{...}}`")
    for name in ("batch", "optim", "schedule"):
        tree.setdefault(name, {})
    _refuse_strangers("", tree)
    tree["recipe"] = _split_knobs(tree.get("recipe", {}))
    config = check(Config, tree)
    checked("watch.project", config.watch.project, PROJECT, "give a name of letters, digits, blanks and . _ - only")
    if config.run.dir is not None:
        checked_folder("run.dir", config.run.dir)
    return config


def encode(config: Config) -> dict[str, Any]:
    """The resolved config as plain data; `decode(encode(c)) == c`."""
    tree: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    tree["recipe"] |= tree["recipe"].pop("knobs")
    return tree


def fields_of(section: str) -> list[str]:
    """Names of the settings of one section."""
    kind = get_type_hints(Config)[section]
    return [f.name for f in dataclasses.fields(kind) if f.name != "knobs"] if dataclasses.is_dataclass(kind) else []


def _split_knobs(section: Mapping[str, Any]) -> dict[str, Any]:
    own = {f.name for f in dataclasses.fields(RecipeConfig)} - {"knobs"}
    knobs = {str(k): v for k, v in section.items() if k not in own}
    for name, value in knobs.items():
        try:
            msgspec.convert(value, Knob, strict=True)
        except msgspec.ValidationError:
            raise UserError(f"recipe.{name}", f"is {show(value)}", "give a number, text, true, false or a list of these") from None
    return {k: v for k, v in section.items() if k in own} | {"knobs": knobs}


def _refuse_strangers(path: str, value: Any) -> None:
    """Raise UserError at what JSON has no word for: dates and bytes that YAML read."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            _refuse_strangers(f"{path}.{name}" if path else str(name), part)
    elif isinstance(value, list | tuple):
        for part in value:
            _refuse_strangers(path, part)
    elif not isinstance(value, bool | int | float | str | None):
        raise UserError(path, f"is {show(value)}, read as {type(value).__name__}", "put it in quotes")


def _scalar(dotted: str, text: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  _Loader is a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise UserError(f"--{dotted}", f"is {text!r}, which is not YAML", "quote it") from e


def _set(tree: dict[str, Any], dotted: str, value: Any) -> None:
    section, _, name = dotted.partition(".")
    if name:
        if not isinstance(tree.setdefault(section, {}), dict):
            raise UserError(f"--{dotted}", f"is {show(value)}, but --{section} is {show(tree[section])}", "give one of them")
        tree[section][name] = value
    else:
        tree[section] = value


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        under = out.get(key)
        out[key] = under | value if isinstance(under, dict) and isinstance(value, dict) else value
    return out


def _replace_exclusive(tree: dict[str, Any], over: Mapping[str, Any]) -> None:
    """Drop from the file what a flag of the same exclusive group replaces."""
    for group in EXCLUSIVE:
        section = group[0].partition(".")[0]
        names = [g.partition(".")[2] for g in group]
        ours, theirs = over.get(section), tree.get(section)
        if not isinstance(ours, dict) or not isinstance(theirs, dict) or not any(n in ours for n in names):
            continue
        dropped = [n for n in names if n in theirs and n not in ours]
        for setting in ("milestones", "every"):
            if section == "schedule" and dropped and setting in theirs and setting not in ours:
                remedy = f"give --schedule.{setting} as well"
                raise UserError(f"schedule.{setting}", f"{theirs[setting]} is in {dropped[0]}, the unit a flag changed", remedy)
        for n in dropped:
            del theirs[n]


def _resolve_code(tree: dict[str, Any], base: Path) -> None:
    """Make the paths in `recipe.use`, `scaling.rule` and `watch.use` absolute, so that the run folder's copy works too."""
    for section, name in (("recipe", "use"), ("scaling", "rule"), ("watch", "use")):
        part = tree.get(section)
        if isinstance(part, dict) and name in part:
            value = part[name]
            part[name] = [_absolute(v, base) for v in value] if isinstance(value, list) else _absolute(value, base)


def _inline_json(tree: dict[str, Any], base: Path) -> None:
    """Put the content of the JSON file that `backend.deepspeed` names in its place, so that the run file says all."""
    part = tree.get("backend")
    named = part.get("deepspeed") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(named, str):
        return
    try:
        content = json.loads((base / named).read_text())
    except (OSError, ValueError) as e:
        raise UserError("backend.deepspeed", f"{named!r} cannot be read: {e}", "give a JSON file, or the keys themselves") from e
    part["deepspeed"] = content


def _absolute(name: Any, base: Path) -> Any:
    if not isinstance(name, str) or ".py:" not in name:
        return name
    path, _, attribute = name.rpartition(":")
    return f"{base / path}:{attribute}"
