"""YAML and flags -> Config, and back. Strict: every mistake is one line with its dotted path.

Precedence: default < run file < flag. Flags arrive as {"batch.total": "4096"} and are read as YAML scalars.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from harness.config.allowed_names import PROJECT, check_locale, checked, checked_folder
from harness.config.amounts import spelled_out
from harness.config.credentials import check_no_credential
from harness.config.errors import UserError, did_you_mean
from harness.config.plain_file import open_plain, read_plain
from harness.config.run_folder import RUN_FILE
from harness.config.schema import EXCLUSIVE, Config, Knob, RecipeConfig
from harness.config.step_units import STEPS, refuse_steps
from harness.config.urls import check_no_credentials, checked_place
from harness.config.user_code import resolved
from harness.config.validate import check, show
from harness.config.yaml_text import decode_text, from_yaml

MAX_BYTES = 1_000_000
WITHOUT_SECTION = ("precision", "init_from", "init_partial")
"""Settings that stand alone in a run file."""


def load(path: Path, flags: Mapping[str, str] | None = None) -> Config:
    """Read a run file, and lay settings over it that were typed as flags.

    `flags`: text by setting, such as {"batch.total": "4096"}, read as YAML. Raises UserError, naming setting, value and remedy.
    """
    tree = read_tree(path)
    over: dict[str, Any] = {}
    for dotted, text in (flags or {}).items():
        _set(over, dotted, _scalar(dotted, text))
    _resolve_code(over, Path.cwd())
    _inline_json(over, Path.cwd())
    _replace_exclusive(tree, over)
    return decode(_merge(tree, over))


def read_tree(path: Path) -> dict[str, Any]:
    """A run file as plain data, not checked yet; the paths in it are absolute. Raises UserError."""
    tree = _flat_reference(read_yaml(path))
    _resolve_code(tree, path.resolve().parent)
    _inline_json(tree, path.resolve().parent)
    return tree


def read_yaml(path: Path) -> dict[str, Any]:
    """One YAML mapping from a file of at most MAX_BYTES. Raises UserError."""
    try:
        with path.open("rb") if path.parts[:2] == ("/", "dev") else open_plain(path) as file:  # such as the shell's <(...)
            data = file.read(MAX_BYTES + 1)
            size = os.fstat(file.fileno()).st_size
    except OSError as e:
        raise UserError("run file", f"{path}: {e.strerror}", _instead(path)) from e
    if path.suffix == ".py":
        raise UserError("run file", f"{path} is a Python file", f"`widebatch init {path}` writes a run file for the recipe in it")
    if len(data) > MAX_BYTES:
        raise UserError("run file", f"{path} has {size} bytes", f"a run file has at most {MAX_BYTES}")
    try:
        text = decode_text(data)
    except ValueError as e:
        raise UserError("run file", f"{path} {e}", "save it as UTF-8") from e
    try:
        tree = from_yaml(text)
    except ValueError as e:
        raise UserError("run file", f"{path} {e}", "fix that line") from e
    if not isinstance(tree, dict):
        kind = "nothing" if tree is None else f"a {type(tree).__name__}"
        raise UserError("run file", f"{path} holds {kind}, not sections", "write sections such as `batch: {reference: 64}`")
    return tree


def _instead(path: Path) -> str:
    """What to give instead of a path that leads to no file."""
    twin = path.with_suffix(".yml" if path.suffix == ".yaml" else ".yaml")
    near = next((file for file in (path / RUN_FILE, twin) if file.is_file()), None)
    return f"did you mean {near}?" if near else "give the path of a run file: `widebatch configs` lists some"


def decode(tree: Mapping[str, Any]) -> Config:
    """A checked Config from plain dicts, lists and scalars. Raises UserError naming the dotted path."""
    tree = _flat_reference(tree)
    _refuse_strangers("", tree)
    _refuse_lengths_in_steps(tree)
    known = [f.name for f in dataclasses.fields(Config)]
    for name, section in tree.items():
        if name not in known:
            raise UserError(str(name), "unknown section", did_you_mean(str(name), known))
        if name not in WITHOUT_SECTION and not isinstance(section, Mapping | None):
            raise UserError(name, f"is {show(section)}, not a section", f"write `{name}: {{...}}`")
    tree = {name: section for name, section in tree.items() if section is not None}  # None: all lines of a section may be comments
    for name in ("batch", "optim", "schedule"):
        tree.setdefault(name, {})
    tree["recipe"] = _split_knobs(tree.get("recipe", {}))
    tree = {name: _spelled(name, section) for name, section in tree.items()}
    config = check(Config, tree)
    if config.watch.project is not None:
        checked("watch.project", config.watch.project, PROJECT, "give a name of letters, digits, blanks and . _ - only")
    if config.init_partial and config.init_from is None:
        raise UserError("init_partial", "is true, without init_from", "name the weights to begin with, or leave it out")
    if config.run.dir is not None:
        checked_folder("run.dir", config.run.dir)
    if config.checkpoint.dir is not None:
        checked_place("checkpoint.dir", config.checkpoint.dir)
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


def settings() -> list[str]:
    """The dotted names of all settings, knobs of the recipe aside."""
    return [f"{f.name}.{key}" for f in dataclasses.fields(Config) for key in fields_of(f.name)]


def _refuse_lengths_in_steps(tree: Mapping[str, Any]) -> None:
    """Raise UserError at a setting that is none of ours and is written in optimizer steps; knobs of the recipe may be."""
    for name, section in tree.items():
        given = {f"{name}.{key}": value for key, value in section.items()} if isinstance(section, Mapping) else {str(name): section}
        for setting, value in given.items() if name != "recipe" else ():
            if STEPS.fullmatch(setting.rpartition(".")[2]) and setting not in (known := settings()):
                refuse_steps(setting, value, tree, known)


def _flat_reference(tree: Mapping[str, Any]) -> dict[str, Any]:
    """`batch.reference: {batch: 512, tokens: 10B}` as batch.reference: 512 and section reference. Raises UserError."""
    batch = tree.get("batch")
    known = batch.get("reference") if isinstance(batch, Mapping) else None
    if not isinstance(batch, Mapping) or not isinstance(known, Mapping):
        return dict(tree)
    more = {name: value for name, value in known.items() if name != "batch"}
    if "batch" not in known:
        raise UserError("batch.reference", f"is {show(dict(known))}, without a batch", "write {batch: 512, tokens: 10B}")
    if tree.get("reference"):
        raise UserError("reference", "is given twice: also within batch.reference", "give it once")
    return dict(tree) | {"batch": {**batch, "reference": known["batch"]}, "reference": more}


def _spelled(name: str, section: Any) -> Any:
    """A section with its amounts, such as 0.5M, as numbers."""
    kind: type = get_type_hints(Config)[name]
    return spelled_out(kind, section, name) if fields_of(name) and isinstance(section, Mapping) else section


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
    """Raise UserError at values without a JSON form (dates and bytes that YAML read), and at credentials."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            check_no_credential(path or "run file", str(name))
            _refuse_strangers(f"{path}.{name}" if path else str(name), part)
    elif isinstance(value, list | tuple):
        for part in value:
            _refuse_strangers(path, part)
    elif isinstance(value, str):
        check_no_credentials(path, value)
        check_no_credential(path, value)
    elif not isinstance(value, bool | int | float | None):
        raise UserError(path, f"is {show(value)}, read as {type(value).__name__}", "put it in quotes")


def _scalar(dotted: str, text: str) -> Any:
    """What a flag's text stands for. Raises UserError, also where YAML would leave a part of it out, or fold its lines."""
    check_locale(f"--{dotted}", text)
    try:
        value = from_yaml(text)
    except ValueError as e:
        raise UserError(f"--{dotted}", f"is {show(text)}, which cannot be read ({e})", "quote it") from e
    if isinstance(value, str) and value != text.strip() and not text.strip().startswith(("'", '"', "|", ">", "!")):
        raise UserError(f"--{dotted}", f"is {show(text)}, which YAML reads as {show(value)}", "quote it, as in '\"a #b\"'")
    return value


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
    """Drop settings of the file that a flag of the same exclusive group replaces."""
    for group in EXCLUSIVE:
        section = group[0].partition(".")[0]
        names = [g.partition(".")[2] for g in group]
        ours, theirs = over.get(section), tree.get(section)
        if not isinstance(ours, dict) or not isinstance(theirs, dict) or all(ours.get(n) is None for n in names):
            continue
        dropped = [n for n in names if theirs.get(n) is not None and n not in ours]
        for setting in ("milestones", "every"):
            if section == "schedule" and dropped and theirs.get(setting) and setting not in ours:
                remedy = f"give --schedule.{setting} as well"
                at = f"{theirs[setting]} is given in {dropped[0]}, and a flag has changed the schedule's unit"
                raise UserError(f"schedule.{setting}", at, remedy)
        for n in dropped:
            del theirs[n]


def _resolve_code(tree: dict[str, Any], base: Path) -> None:
    """Make the paths of code (recipe.use, optim.name, scaling.rule, watch.use) absolute, so that the run folder's copy works."""
    for section, name in (("recipe", "use"), ("optim", "name"), ("scaling", "rule"), ("watch", "use")):
        part = tree.get(section)
        if isinstance(part, dict) and name in part:
            value = part[name]
            part[name] = [resolved(v, base) for v in value] if isinstance(value, list) else resolved(value, base)


def _inline_json(tree: dict[str, Any], base: Path) -> None:
    """Replace the path in `backend.deepspeed` by the content of that JSON file, so that the run file is complete."""
    part = tree.get("backend")
    named = part.get("deepspeed") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(named, str):
        return
    try:
        content = json.loads(decode_text(read_plain(base / named, MAX_BYTES)))
    except (OSError, ValueError, RecursionError) as e:
        raise UserError("backend.deepspeed", f"{named!r} cannot be read: {e}", "give a JSON file, or the keys themselves") from e
    part["deepspeed"] = content
