"""One batch before training starts, so that a mistake in a recipe is reported in a second and not after an epoch."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from harness.config.errors import UserError, did_you_mean
from harness.config.schema import Config
from harness.data.feed import Feed
from harness.data.sample_order import Chunk, StepShards
from harness.data.seeding import seed_all
from harness.engine.buffers import Buffers
from harness.engine.interface import Engine, autocast
from harness.recipes.base import Recipe
from harness.recipes.gathers import no_collectives, told_simulated
from harness.training.evaluate import evaluate_one

FEW = 4
"""How many samples the loss is computed of, as a whole and in halves."""
SAME = {"fp32": 1e-4, "fp64": 1e-6, "bf16": 0.03, "fp16": 0.03}
"""Relative tolerance of equal losses at different batch sizes, by precision."""


def try_recipe(engine: Engine, recipe: Recipe, config: Config, feed: Feed, valid: Feed | None) -> list[str]:
    """Evaluate one batch, and check that the loss is a sum; returns the notices. Weights and buffers stay. Raises UserError."""
    notes: list[str] = []
    with ExitStack() as stack:
        stack.enter_context(told_simulated(engine.plan, notes))
        if config.compute.compile:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(kept_buffers(engine))
        check_sum(engine, recipe, config, feed)
        if valid is None:
            check_unvalidated(config)
        elif (names := evaluate_one(engine, recipe, config, valid)) is not None:
            check_metric(config, names)
    return notes


def check_metric(config: Config, names: list[str]) -> None:
    """Raises UserError if the recipe does not give the metric by which the run file judges."""
    name = config.eval.metric
    if name not in names:
        remedy = f"{did_you_mean(name, names)}; a batch without such items may give (0, 0)"
        raise UserError("eval.metric", f"the recipe gives no {name}", remedy)


def check_unvalidated(config: Config) -> None:
    """Raises UserError if the run file asks for evaluations, and the recipe has nothing to evaluate on."""
    asked = {
        "schedule.shape": config.schedule.shape if config.schedule.shape == "plateau" else None,
        "eval.every_epochs": config.eval.every_epochs,
        "eval.every_samples": config.eval.every_samples,
        "eval.patience_epochs": config.eval.patience_epochs,
        "eval.patience_samples": config.eval.patience_samples,
        "eval.sharpness": config.eval.sharpness,
        "eval.noise_scales": config.eval.noise_scales,
        "eval.metric": config.eval.metric if config.eval.metric != "eval/loss" else None,
        "checkpoint.keep_best": config.checkpoint.keep_best or None,
    }
    for setting, value in asked.items():
        if value is not None:
            raise UserError(setting, f'is {value}, but data("valid") is None', "leave it out, or give the recipe validation data")


def check_sum(engine: Engine, recipe: Recipe, config: Config, feed: Feed) -> None:
    """Refuse a loss that is a mean: its gradient, divided by the count once more, would train to nothing in silence.

    The loss of a few samples must be the sum of its halves', with the model in eval mode. What cannot be checked passes: a loss
    that draws random numbers, gathers over ranks, or counts nothing here. A sum whose terms depend on the rest of the batch may
    look like a mean by chance: it is refused only where no other group of samples shows a sum. Raises UserError.
    """
    there = min(2 * FEW, len(feed.data))
    starts = () if recipe.gathers else range(0, there - 1, FEW)
    said = ""
    for start in starts:
        found = _mean(engine, recipe, config, feed, start, min(FEW, there - start))
        if found == "":
            return
        said = said or found or ""
    if said:
        remedy = 'give the sum, as with reduction="sum": the harness divides by the count, over all ranks'
        raise UserError("recipe.use", said, remedy)


def _mean(engine: Engine, recipe: Recipe, config: Config, feed: Feed, start: int, size: int) -> str | None:
    """How the loss of `size` samples from `start` on looks like a mean: "" where it is a sum, None if it cannot be checked.

    Raises UserError.
    """
    half = size // 2
    chunks = (Chunk(start, size), Chunk(start, half), Chunk(start + half, size - half), Chunk(start, size))
    micros = feed.few(StepShards(0, size, chunks))
    if any(micro.chunk.padding for micro in micros):
        return None
    engine.model.eval()
    sums: list[tuple[float, float]] = []
    with torch.no_grad(), autocast(config, engine.device):
        for number, micro in enumerate(micros):
            seed_all(number)
            try:
                with no_collectives(recipe, whole=engine.plan.backend not in ("fsdp", "zero3")):
                    total, count = recipe.loss(engine.model, micro.batch)
                sums.append((float(total), float(count)))
            except UserError:
                raise
            except Exception:  # noqa: BLE001  a loss need not work in eval mode: training and evaluation tell what is wrong
                return None
    (whole, items), (first, a), (second, b), (again, _) = sums
    if items < 0:
        raise UserError("recipe.use", f"loss() gave {items:g} as the count", "give the number of items, 0 where there are none")
    near = SAME[config.precision] * (abs(first) + abs(second))
    random, counted = abs(again - whole) > near, items > 1 and a > 0 and b > 0 and a + b == items
    between = min(first, second) - near <= whole <= max(first, second) + near
    if not counted or random:
        return None
    if not between or abs(first + second - whole) <= near:
        return ""
    return f"loss() gave {whole:.4g} with a count of {items:g}, and {first:.4g} and {second:.4g} for its halves: a mean, not a sum"


@contextmanager
def kept_buffers(engine: Engine) -> Iterator[None]:
    """Restores a model's buffers when the context ends."""
    kept = Buffers(engine.model, engine.device).keep()
    try:
        yield
    finally:
        Buffers.put_back(kept)
