"""The feed of a data set for an engine: what a run trains on, what it is evaluated on, and what a batch trial takes."""

from harness.config.schema import Config
from harness.data.feed import Data, Feed
from harness.data.sample_order import SampleOrder, derive
from harness.data.seeding import KEYS
from harness.engine.interface import Engine
from harness.recipes.base import Recipe


def open_feed(engine: Engine, recipe: Recipe, config: Config, data: Data, *, order: SampleOrder | None) -> Feed:
    """Batches of `data` on the engine's device, in `order`, or from front to back for None."""
    return Feed(
        data,
        order=order,
        device=engine.device,
        dtype=engine.dtype,
        seed=config.run.seed,
        collate=recipe.collate,
        workers=recipe.workers,
        key_seed=derive(config.run.seed, KEYS) if recipe.augments else None,
        faults=config.data,
        equal=recipe.gathers,
    )
