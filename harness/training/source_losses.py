"""The training loss of each source of a mixture: of the samples of the next step, before they are trained on."""

from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor

from harness.config.errors import UserError
from harness.config.schema import Config
from harness.data.feed import Feed, Micro
from harness.data.joined import Joined
from harness.data.mixed_order import MixedOrder
from harness.data.sample_order import derive, shard_step
from harness.data.seeding import EVALUATION, seed_all
from harness.engine.interface import Engine, autocast
from harness.recipes.base import Recipe
from harness.training.feeds import open_feed
from harness.training.first_batch import kept_buffers


@final
class SourceLosses:
    """Reads the next step's samples once more, source by source, and computes their loss without a gradient."""

    def __init__(self, engine: Engine, recipe: Recipe, config: Config, feed: Feed) -> None:
        """Raises UserError where there are no sources, or no loss of one alone."""
        data, order = feed.data, feed.order
        if not isinstance(data, Joined) or not isinstance(order, MixedOrder):
            raise UserError("watch.loss_by_source", "is true, but the training data is no mixture", "leave it out, or mix sources")
        if recipe.gathers:
            at = "is true, but loss() gathers over ranks: a source alone has another one"
            raise UserError("watch.loss_by_source", at, "leave it out")
        self._engine, self._recipe, self._config, self._order = engine, recipe, config, order
        self._feeds = {
            name: open_feed(engine, recipe, config, one, order=own)
            for (name, one), own in zip(data.sets.items(), order.orders, strict=True)
        }

    def of(self, start: int, stop: int) -> dict[str, float | None]:
        """`data/SOURCE_loss` over stream positions [start, stop), None for a source that has no sample there.

        One reduction, and one copy to the host. To be called on all ranks: each runs as many passes as the others.
        """
        engine = self._engine
        with engine.heartbeat.phase("eval"), kept_buffers(engine), torch.no_grad(), autocast(self._config, engine.device):
            engine.sync_buffers()
            engine.model.eval()
            spans = zip(self._feeds.values(), self._order.drawn(start), self._order.drawn(stop), strict=True)
            mine = torch.stack([self._sums(feed, first, last) for feed, first, last in spans])
        found = zip(self._feeds, engine.reduce(mine).tolist(), strict=True)
        return {f"data/{name}_loss": loss / count if count else None for name, (loss, count) in found}

    def _sums(self, feed: Feed, start: int, stop: int) -> Tensor:
        """(loss, count) of this rank's part of a source's samples: float64 [2]."""
        sums = torch.zeros(2, dtype=torch.float64, device=self._engine.device)
        for micro in self._passes(feed, start, stop):
            seed_all(derive(self._config.run.seed, EVALUATION, micro.chunk.start))
            pair = self._recipe.loss(self._engine.model, micro.batch)
            if not micro.chunk.padding:
                sums += torch.stack([torch.as_tensor(value, device=sums.device).double() for value in pair])
        return sums

    def _passes(self, feed: Feed, start: int, stop: int) -> Iterator[Micro]:
        plan, ranks = self._engine.plan, self._engine.processes
        if start < stop:
            yield from feed.few(shard_step(start, stop - start, plan.micro_batch, ranks, self._engine.rank, ranks))
