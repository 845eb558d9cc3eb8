"""Which samples made a step's loss not finite. Looked for only after such a step, at the end of its window."""

from collections.abc import Sequence

import torch

from harness.config.schema import Config
from harness.data.feed import Feed, Micro
from harness.data.sample_order import Chunk, StepShards, derive
from harness.data.seeding import seed_all
from harness.data.workers import named
from harness.distributed.process_group import gather
from harness.engine.interface import Engine, autocast
from harness.recipes.base import Recipe
from harness.training.first_batch import kept_buffers


def culprits(engine: Engine, recipe: Recipe, config: Config, feed: Feed, shards: StepShards) -> str:
    """The samples of `shards`, this rank's part of a step, and of the others' parts, whose loss alone is not finite, as text.

    Every rank runs as many passes as the others: those of the step again, then the samples of one of them one by one, with the
    weights as they are now, in eval mode. To be called on all ranks together.
    """
    with engine.heartbeat.phase("eval"), kept_buffers(engine):
        engine.model.eval()
        fine = _finite(engine, recipe, config, feed, shards.chunks)
        chunk = shards.chunks[fine.index(False) if False in fine else 0]
        singles = [Chunk(chunk.start + min(i, chunk.count - 1), 1) for i in range(engine.plan.micro_batch)]
        fine = _finite(engine, recipe, config, feed, singles)
    mine = {int(i) for one, good in zip(singles, fine, strict=True) if not good for i in feed.ids(one)}
    found = sorted({i for each in gather(mine) for i in each})
    if found:
        return f"the loss of sample{'s' if len(found) > 1 else ''} {named(found)} is not finite: look at the data"
    ids = [int(i) for i in feed.ids(Chunk(shards.start, shards.samples))]
    return f"every sample of it has a finite loss by itself: the samples are {named(ids)}"


def _finite(engine: Engine, recipe: Recipe, config: Config, feed: Feed, chunks: Sequence[Chunk]) -> list[bool]:
    """Whether the loss of each pass is finite; a pass that is only padding, or cannot be run, counts as finite."""
    micros = feed.few(StepShards(0, 0, tuple(chunks)))
    return [micro.chunk.padding or _is_finite(engine, recipe, config, micro) for micro in micros]


def _is_finite(engine: Engine, recipe: Recipe, config: Config, micro: Micro) -> bool:
    seed_all(derive(config.run.seed, micro.chunk.start))
    with torch.no_grad(), autocast(config, engine.device):
        total, count = recipe.loss(engine.model, micro.batch)
    return bool(torch.isfinite(total)) or float(count) == 0
