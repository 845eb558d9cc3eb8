"""Validation, exact over ranks: each sample once, also where the data does not divide."""

from functools import partial
from typing import Any

import torch

from harness.engine.engine import Engine, autocast
from harness.parts.data import Feed, Micro
from harness.parts.recipe import Recipe
from harness.parts.sharpness import largest_eigenvalue
from harness.plan.config import Config
from harness.plan.order import deals


def evaluate(engine: Engine, recipe: Recipe, config: Config, feed: Feed) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """(the means of the recipe's metrics over the whole data set, as `eval/NAME`, equal on every rank; examples of this rank's).

    Where the plan keeps a running average of the weights, its means follow as `eval/ema_NAME`.
    """
    means, examples = _measure(engine, recipe, config, feed)
    told = {f"eval/{name}": mean for name, mean in means.items()}
    if engine.plan.ema is not None:
        with engine.averaged():
            averaged, _ = _measure(engine, recipe, config, feed)
        told |= {f"eval/ema_{name}": mean for name, mean in averaged.items()}
    return told, examples


def sharpness(engine: Engine, recipe: Recipe, feed: Feed, samples: int) -> float:
    """The largest eigenvalue of the Hessian of the mean loss over the first `samples` of the shuffled training data."""
    engine.sync_buffers()
    engine.model.eval()
    size, ranks, micro = min(samples, len(feed.data)), engine.processes, engine.plan.micro_batch
    dealt = deals(0, size, ranks * micro, micro, ranks, engine.rank, ranks)
    held = [one for _, micros in feed.steps(dealt) for one in micros if not one.chunk.ghost]
    with torch.no_grad():
        counts = [torch.as_tensor(recipe.loss(engine.model, one.batch)[1], device=engine.device).double() for one in held]
    count = engine.reduce(torch.stack([*counts, torch.zeros((), dtype=torch.float64, device=engine.device)]).sum())
    losses = [partial(_mean_loss, engine, recipe, one, float(count)) for one in held]
    return largest_eigenvalue(losses, [p for p in engine.model.parameters() if p.requires_grad], engine.reduce)


def _mean_loss(engine: Engine, recipe: Recipe, micro: Micro, count: float) -> torch.Tensor:
    return recipe.loss(engine.model, micro.batch)[0] / count


def _measure(engine: Engine, recipe: Recipe, config: Config, feed: Feed) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """(means by the recipe's names, examples).

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
    return dict(zip(names, means, strict=True)), examples
