"""Validation, exact over ranks: each sample once, also where the data does not divide."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from harness.config.schema import Config, EvalConfig
from harness.data.feed import Feed, Micro
from harness.data.joined import Joined
from harness.data.sample_order import derive, step_shards
from harness.data.seeding import EVALUATION, seed_all
from harness.distributed.process_group import gather
from harness.engine.interface import Engine, autocast
from harness.modeling.hessian import largest_eigenvalue
from harness.modeling.noise_geometry import GeometryNoise, adam_scales, muon_matrices
from harness.recipes.base import Recipe, Sum
from harness.recipes.contract import check_metrics, check_outputs
from harness.training.scoring import Rows, TooFewError, score
from harness.training.stop_look import StopLook

CHUNKS = 16
"""How many chunks of training samples noise scales are taken from at least."""


def evaluate(
    engine: Engine, recipe: Recipe, config: Config, feed: Feed, look: Callable[[], None] = lambda: None
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """(the means of the recipe's metrics over the whole data set, as `eval/NAME`, equal on every rank; examples of this rank's).

    Of several named sets the means of each follow as `eval/SET/NAME`. Where the plan keeps a running average of the weights, its
    means follow with `ema_` before their names. `look` is called after each pass, and may raise to end it, on all ranks alike.
    """
    with engine.evaluated():
        means, examples = _all_sets(engine, recipe, config, feed, look)
    told = {f"eval/{name}": mean for name, mean in means.items()}
    if engine.plan.ema is not None:
        with engine.averaged():
            averaged, _ = _all_sets(engine, recipe, config, feed, look)
        told |= {f"eval/{_of_average(name)}": mean for name, mean in averaged.items()}
    return told, examples


def evaluate_one(engine: Engine, recipe: Recipe, config: Config, feed: Feed) -> list[str] | None:
    """The names that one batch of each rank gives, as `evaluate` has them; None if one batch does not tell.

    Raises UserError for what `evaluate` could not take.
    """
    try:
        with engine.evaluated():
            means, _ = _all_sets(engine, recipe, config, feed, lambda: None, most=engine.processes * engine.plan.micro_batch)
    except TooFewError:
        return None
    names = [*means, *(map(_of_average, means) if engine.plan.ema is not None else ())]
    return [f"eval/{name}" for name in names]


def _of_average(name: str) -> str:
    """`loss` -> `ema_loss`, `web/loss` -> `web/ema_loss`."""
    named, slash, metric = name.rpartition("/")
    return f"{named}{slash}ema_{metric}"


def _all_sets(
    engine: Engine, recipe: Recipe, config: Config, feed: Feed, look: Callable[[], None], most: int | None = None
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """(means over all of the data, and over each of its named sets; examples). `most`: of each set only so many samples."""
    sets = list(feed.data.spans()) if isinstance(feed.data, Joined) else [("", 0, len(feed.data))]
    measured, means = [], dict[str, float]()
    for name, start, stop in sets:
        last = stop if most is None else min(start + most, stop)
        found = _measure(engine, recipe, config, _passes(engine, recipe, feed, start, last, few=most is not None), look)
        measured.append(found)
        if name:
            means |= {f"{name}/{metric}": mean for metric, mean in _means(engine, recipe, [found], whole=last == stop).items()}
    whole = most is None or all(stop - start <= most for _, start, stop in sets)
    means = _means(engine, recipe, measured, whole=whole) | means
    return means, next((found.examples for found in measured if found.examples), [])


def diagnostics(engine: Engine, recipe: Recipe, config: EvalConfig, feed: Feed, look: StopLook) -> dict[str, float]:
    """What the run file asks for of the loss's shape at this evaluation, on training samples. Raises AbandonedError."""
    found = {} if not config.sharpness else {"eval/sharpness": sharpness(engine, recipe, feed, config.sharpness, look)}
    return found | (noise_scales(engine, recipe, feed, config.noise_scales, look) if config.noise_scales else {})


def sharpness(engine: Engine, recipe: Recipe, feed: Feed, samples: int, look: StopLook) -> float:
    """The largest eigenvalue of the Hessian of the mean loss over the first `samples` of the shuffled training data.

    Raises AbandonedError.
    """
    engine.sync_buffers()
    engine.model.eval()
    size, ranks, micro = min(samples, len(feed.data)), engine.processes, engine.plan.micro_batch
    shards = step_shards(0, size, ranks * micro, micro, ranks, engine.rank, ranks)
    held = [one for _, micros in feed.steps(shards) for one in micros if not one.chunk.padding]
    with torch.no_grad():
        counts = [torch.as_tensor(_loss(engine, recipe, one)[1], device=engine.device).double() for one in held]
    count = engine.reduce(torch.stack([*counts, torch.zeros((), dtype=torch.float64, device=engine.device)]).sum())
    losses = [partial(_mean_loss, engine, recipe, one, float(count)) for one in held]
    with engine.evaluated():
        return largest_eigenvalue(losses, [p for p in engine.model.parameters() if p.requires_grad], look.reduce)


def noise_scales(engine: Engine, recipe: Recipe, feed: Feed, samples: int, look: StopLook) -> dict[str, float]:
    """`eval/noise_scale_samples` and others on the first `samples` of the shuffled training data, in CHUNKS equal chunks or more.

    What noise hides is left out. Raises AbandonedError.
    """
    engine.sync_buffers()
    engine.model.eval()
    size, ranks = min(samples, len(feed.data)), engine.processes
    chunk = max(min(engine.plan.micro_batch, size // CHUNKS), 1)
    params = [p for p in engine.model.parameters() if p.requires_grad]
    found = GeometryNoise(params, muon_matrices(engine.optimizer, params), adam_scales(engine.optimizer, params))
    with engine.evaluated(), torch.enable_grad():
        for _, micros in feed.steps(step_shards(0, size - size % chunk, ranks * chunk, chunk, ranks, engine.rank, ranks)):
            for one in micros:
                if not one.chunk.padding:
                    total, count = _loss(engine, recipe, one)
                    found.add(torch.autograd.grad(total / count, params, materialize_grads=True))
    told = found.read(chunk, look.reduce)
    return {f"eval/{name}_samples": value for name, value in told.items() if math.isfinite(value)}


def _loss(engine: Engine, recipe: Recipe, micro: Micro) -> Sum:
    """The loss of a pass, from the same random numbers at every call."""
    seed_all(derive(EVALUATION, micro.chunk.start))
    return recipe.loss(engine.model, micro.batch)


def _mean_loss(engine: Engine, recipe: Recipe, micro: Micro, count: float) -> torch.Tensor:
    return _loss(engine, recipe, micro)[0] / count


def _passes(engine: Engine, recipe: Recipe, feed: Feed, start: int, stop: int, *, few: bool) -> Iterator[list[Micro]]:
    """This rank's passes over the samples [start, stop), each once over all ranks; whole ones alone where the loss gathers.

    `few`: they are one step, for which one worker is enough.
    """
    ranks, micro = engine.processes, engine.plan.micro_batch
    stop -= (stop - start) % (ranks * micro) if recipe.gathers else 0
    shards = step_shards(start, stop, ranks * micro, micro, ranks, engine.rank, ranks)
    return map(feed.few, shards) if few else (micros for _, micros in feed.steps(shards))


@dataclass
class _Measured:
    """What passes of a set gave: (sum, count) by metric on the device, in float64; rows for score(); examples."""

    totals: dict[str, Tensor] = field(default_factory=dict)
    rows: Rows = field(default_factory=list)
    examples: list[dict[str, Any]] | None = None


def _measure(engine: Engine, recipe: Recipe, config: Config, passes: Iterable[list[Micro]], look: Callable[[], None]) -> _Measured:
    """The recipe's metrics on these passes."""
    engine.sync_buffers()
    engine.model.eval()
    found = _Measured()
    with engine.heartbeat.phase("eval"), torch.no_grad(), autocast(config, engine.device):
        for micros in passes:
            engine.heartbeat.tick()
            for one in micros:
                seed_all(derive(config.run.seed, EVALUATION, one.chunk.start))
                sums = check_metrics(recipe, recipe.metrics(engine.model, one.batch))
                outputs = check_outputs(recipe.outputs(engine.model, one.batch))
                if found.examples is None:
                    found.examples = recipe.examples(engine.model, one.batch)
                for name, pair in sums.items():
                    had = found.totals.get(name, 0.0)
                    parts = torch.stack([torch.as_tensor(v, device=engine.device).double() for v in pair])
                    found.totals[name] = had + (torch.zeros_like(parts) if one.chunk.padding else parts)
                if outputs and not one.chunk.padding:
                    found.rows.append((one.chunk.start, {name: t.detach().cpu() for name, t in outputs.items()}))
            look()
    return found


def _means(engine: Engine, recipe: Recipe, measured: Sequence[_Measured], *, whole: bool) -> dict[str, float]:
    """Means over all ranks and scores of what was measured; `whole`: it is all of the data. One reduction.

    A name that some batches lack, or all of a rank's, counts nothing there.
    """
    mine = dict.fromkeys(name for found in measured for name in found.totals)
    names = list(dict.fromkeys(name for each in gather(list(mine)) for name in each))
    nothing = torch.zeros(2, dtype=torch.float64, device=engine.device)
    sums = engine.reduce(torch.stack([sum((found.totals.get(name, nothing) for found in measured), nothing) for name in names]))
    means = dict(zip(names, (sums[:, 0] / sums[:, 1]).tolist(), strict=True))
    return means | score(recipe, [row for found in measured for row in found.rows], whole=whole)
