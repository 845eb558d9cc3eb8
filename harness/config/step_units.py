"""Lengths written in optimizer steps, as other trainers have them: how many samples they are, and which setting takes those."""

import re
from collections.abc import Mapping
from typing import Any

from harness.config.errors import UserError

STEPS = re.compile(r"(?:(.*?)_?)(?:steps|iters|iterations)")
"""Matches other trainers' names for a length in optimizer steps."""
_ELSEWHERE = {
    r"warm_?up": "scaling.warmup_samples",
    r"eval(uate|uation)?(_every|_interval)?": "eval.every_samples",
    r"(save|checkpoint)(_every|_interval)?": "checkpoint.every_samples",
    r"(max|total|num|train|training|num_train|max_train|num_training)?": "schedule.samples",
}
"""Names of lengths in steps, without their `_steps`, in any section, and the setting that takes the samples."""


def refuse_steps(setting: str, value: Any, tree: Mapping[str, Any], known: list[str]) -> None:
    """Raise UserError where the unknown `setting` is a length in steps. `known`: all settings; `tree`: the run file."""
    section, _, name = setting.rpartition(".")
    found = STEPS.fullmatch(name)
    if found is None:
        return
    stem = found[1]
    own = f"{section}.{stem}_samples"
    key = own if own in known else next((key for form, key in _ELSEWHERE.items() if re.fullmatch(form, stem)), None)
    if key is not None:
        raise UserError(setting, f"is {value}, but lengths are in samples, which hold at any batch", _remedy(key, value, tree))


def _remedy(key: str, steps: Any, tree: Mapping[str, Any]) -> str:
    """What to write; at the batch that the recipe was tuned at, and at a fixed one that is wanted now."""
    batch = tree.get("batch")
    sizes = {name: batch.get(name) for name in ("reference", "total")} if isinstance(batch, Mapping) else {}
    counted = {name: size for name, size in sizes.items() if type(size) is int and size > 0}
    if type(steps) not in (int, float) or not 0 < steps < 2**53 or not counted:
        return f"write {key}: steps x batch"
    several = {f"batch.{name} {size}": round(steps * size) for name, size in counted.items()}
    (first, samples), *more = several.items()
    other = "".join(f", of {at} {count:,}" for at, count in more if count != samples)
    return f"write {key}: {samples} ({steps:g} steps of {first} are {samples:,} samples{other})"
