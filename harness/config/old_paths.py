"""Modules that the README of version 0.1 named, at their old paths: they still import, with a warning that says the new name."""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "harness.parts.data": ("harness.data.feed", "from harness import Table"),
    "harness.parts.recipe": ("harness.recipes.base", "from harness import Recipe"),
    "harness.parts.noise": ("harness.modeling.noise_meter", "from harness import PassNoise"),
    "harness.parts.mixup": ("harness.recipes.mixup", "from harness.recipes import mixup"),
    "harness.parts.text": ("harness.recipes.text", "from harness.recipes import text"),
    "harness.parts.random": ("harness.recipes.sample_random", "from harness.recipes import sample_random"),
    "harness.stats.spikes": ("harness.telemetry.spikes", "from harness import Spikes"),
    "harness.stats.events": ("harness.telemetry.events", "from harness.telemetry import events"),
    "harness.plan.config": ("harness.config.schema", "from harness.config import schema"),
    "harness.plan.decode": ("harness.config.loader", "from harness import load"),
    "harness.plan.errors": ("harness.config.errors", "from harness import UserError"),
    "harness.watch.trainer": ("harness.watch.hf_trainer", "from harness import Telemetry"),
    "harness.train": ("harness.training.loop", "from harness import train"),
}
"""(where a module is now, what to write) by its path in version 0.1."""
_PACKAGES = ("harness.parts", "harness.stats")


class OldPaths:
    """The last finder on `sys.meta_path`: it is asked for nothing that still has its path."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """How a module of `MOVED`, or a package that held some, is loaded; None for all others."""
        del path, target
        if name in MOVED or name in _PACKAGES:
            return ModuleSpec(name, self, is_package=name in _PACKAGES)  # type: ignore[arg-type]
        return None

    def create_module(self, spec: ModuleSpec) -> None:
        """Nothing special: an empty module, which `exec_module` replaces."""

    def exec_module(self, module: ModuleType) -> None:
        """Replace the module in sys.modules by the one at the new path, which the import then returns."""
        if module.__name__ in MOVED:
            now, write = MOVED[module.__name__]
            warnings.warn(f"{module.__name__} is now {now}: write `{write}`", FutureWarning, stacklevel=2)
            sys.modules[module.__name__] = import_module(now)
