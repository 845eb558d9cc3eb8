"""widebatch: take a training recipe tuned at one batch to any number of GPUs.

These are the names to write against; each is imported when it is first used, so `import harness` imports no torch.
"""

import sys
from importlib import import_module

from harness.config.old_paths import OldPaths

TYPE_CHECKING = False  # as type checkers read it; typing itself would cost `widebatch --help` 5 ms
if TYPE_CHECKING:
    from harness.config.errors import UserError
    from harness.config.loader import load
    from harness.data.columns import Table
    from harness.data.joined import mixture
    from harness.data.open_dataset import open_dataset
    from harness.data.samplers import OrderBatchSampler, OrderSampler
    from harness.data.token_files import TokenFiles
    from harness.modeling.noise_meter import PassNoise
    from harness.modeling.planned_optimizer import planned
    from harness.plan.for_tools import arguments_for
    from harness.plan.plan import Plan
    from harness.plan.plan import plan as make_plan
    from harness.plan.world import World
    from harness.recipes.base import Recipe
    from harness.recipes.gathers import gather_rows
    from harness.telemetry.spikes import Spikes
    from harness.training.loop import train
    from harness.training.script_run import Run
    from harness.watch.hf_guard import TrainerGuard
    from harness.watch.hf_trainer import Telemetry
    from harness.watch.lightning_guard import LightningGuard

__all__ = [
    "LightningGuard", "OrderBatchSampler", "OrderSampler", "PassNoise", "Plan", "Recipe", "Run", "Spikes", "Table", "Telemetry",
    "TokenFiles", "TrainerGuard", "UserError", "World", "arguments_for", "gather_rows", "load", "make_plan", "mixture",
    "open_dataset", "planned", "train",
]  # fmt: skip

_HOMES = {
    "LightningGuard": "harness.watch.lightning_guard",
    "OrderBatchSampler": "harness.data.samplers",
    "OrderSampler": "harness.data.samplers",
    "PassNoise": "harness.modeling.noise_meter",
    "Plan": "harness.plan.plan",
    "Recipe": "harness.recipes.base",
    "Run": "harness.training.script_run",
    "Spikes": "harness.telemetry.spikes",
    "Table": "harness.data.columns",
    "Telemetry": "harness.watch.hf_trainer",
    "TokenFiles": "harness.data.token_files",
    "TrainerGuard": "harness.watch.hf_guard",
    "UserError": "harness.config.errors",
    "World": "harness.plan.world",
    "arguments_for": "harness.plan.for_tools",
    "gather_rows": "harness.recipes.gathers",
    "load": "harness.config.loader",
    "make_plan": "harness.plan.plan",
    "mixture": "harness.data.joined",
    "open_dataset": "harness.data.open_dataset",
    "planned": "harness.modeling.planned_optimizer",
    "train": "harness.training.loop",
}


sys.meta_path.append(OldPaths())


def __getattr__(name: str) -> object:
    """A public name, from the module where it lives. Raises AttributeError."""
    if name not in _HOMES:
        raise AttributeError(f"module 'harness' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), "plan" if name == "make_plan" else name)


def __dir__() -> list[str]:
    return __all__
