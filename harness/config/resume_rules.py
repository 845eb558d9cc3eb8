"""What may change in a run file between a checkpoint and the run that resumes from it. Pure.

free: the run is the same run (more GPUs, another cadence). warn: it continues with a notice, since the curves may bend there.
refuse: it would be another run under the same name.
"""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, Literal, get_type_hints

from harness.config.loader import encode
from harness.config.schema import Config

Class = Literal["free", "warn", "refuse"]

_ORDER = "samples would be lost or repeated: keep it"
TABLE: dict[str, tuple[Class, str]] = {
    "recipe": ("warn", "the model, its data or its loss may differ from here on"),
    "recipe.samples": ("free", "checked against the data"),
    "batch": ("free", "lr and schedule follow the batch by the rule"),
    "batch.reference": ("warn", "the rule takes lr from it, so lr jumps here"),
    "reference": ("warn", "the rule takes lr from it, so lr jumps here"),
    "optim": ("warn", "the optimizer continues with other numbers from here"),
    "optim.name": ("refuse", "its state fits no other optimizer: keep it"),
    "optim.lr_source": ("free", "only a note on where lr is from"),
    "scaling": ("warn", "lr follows another rule from here"),
    "schedule": ("warn", "lr continues along another curve from here"),
    "precision": ("warn", "numbers are rounded differently from here on"),
    "init_from": ("free", "a run that resumes has its own weights; of those that are not trained the digests must be the same"),
    "init_partial": ("free", "a run that resumes has its own weights"),
    "backend": ("free", "every backend resumes from every other's checkpoints"),
    "compute": ("free", "changes speed and memory only"),
    "eval": ("free", "the weights do not depend on it"),
    "checkpoint": ("free", "the weights do not depend on it"),
    "guard": ("free", "the guard reacts differently from here on"),
    "watch": ("free", "the weights do not depend on it"),
    "data": ("free", "how samples are fetched"),
    "data.order": ("refuse", _ORDER),
    "data.block": ("refuse", _ORDER),
    "data.window": ("refuse", _ORDER),
    "run": ("free", "where the run is stored and when it stops"),
    "run.seed": ("refuse", "the sample order depends on it: keep the seed"),
}
"""(class, reason) by setting or section; the longest matching path counts. Settings outside of all of them: warn."""
UNKNOWN: tuple[Class, str] = ("warn", "")


@dataclass(frozen=True)
class Change:
    """A setting that is not as it was when the checkpoint was saved."""

    setting: str
    before: Any
    now: Any
    kind: Class
    reason: str


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """What differs between two run files as `encode` gives them, in the order of settings. A new setting was at its default."""
    old, new = dict(_flat(before)), dict(_flat(now))
    old = {setting: _unset(setting) for setting in new} | old
    differ = [setting for setting in sorted({*old, *new}) if old.get(setting) != new.get(setting)]
    return [Change(setting, old.get(setting), new.get(setting), *classed(setting)) for setting in differ]


def classed(setting: str) -> tuple[Class, str]:
    """(class, reason) of a change of a setting, by its dotted path."""
    parts = setting.split(".")
    paths = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next((TABLE[path] for path in paths if path in TABLE), UNKNOWN)


def saved_form(config: Config) -> dict[str, Any]:
    """A run file as a checkpoint keeps it: without the settings of place and time, which do not affect the run."""
    tree = encode(config)
    return tree | {"run": {"seed": config.run.seed}, "checkpoint": {}}


def _unset(setting: str) -> Any:
    """The default of a setting that a run file does not have."""
    section, _, name = setting.partition(".")
    kind: Any = get_type_hints(Config).get(section)
    default = {f.name: f.default for f in fields(kind)}.get(name) if is_dataclass(kind) else None
    return None if default is MISSING else list(default) if isinstance(default, tuple) else default


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of every setting."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value
