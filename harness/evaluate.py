"""Validation, exact over ranks: each sample once, also where the data does not divide."""

from typing import Any

import torch

from harness.engine.engine import Engine, autocast
from harness.parts.data import Feed
from harness.parts.recipe import Recipe
from harness.plan.config import Config
from harness.plan.order import deals


def evaluate(engine: Engine, recipe: Recipe, config: Config, feed: Feed) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """(the means of the recipe's metrics over the whole data set, as `eval/NAME`, equal on every rank; examples of this rank's).

    Sums and counts are added in float64 on the device and meet in one reduction.
    """
    size = len(feed.data)
    ranks, micro = engine.processes, engine.plan.micro_batch
    engine.sync_buffers()
    engine.model.eval()
    names: list[str] = []
    examples: list[dict[str, Any]] = []
    totals = torch.zeros(0, 2, dtype=torch.float64, device=engine.device)
    with engine.pulse.phase("eval"), torch.no_grad(), autocast(config, engine.device):
        for _, micros in feed.steps(deals(0, size, ranks * micro, micro, ranks, engine.rank, ranks)):
            engine.pulse.tick()
            for one in micros:
                sums = recipe.metrics(engine.model, one.batch)
                if not names:
                    examples = recipe.examples(engine.model, one.batch)
                    names = list(sums)
                    totals = torch.zeros(len(names), 2, dtype=torch.float64, device=engine.device)
                if not one.chunk.ghost:
                    parts = [torch.stack([torch.as_tensor(v, device=engine.device).double() for v in sums[n]]) for n in names]
                    totals += torch.stack(parts)
    totals = engine.reduce(totals)
    means = (totals[:, 0] / totals[:, 1]).tolist()
    return {f"eval/{name}": mean for name, mean in zip(names, means, strict=True)}, examples
