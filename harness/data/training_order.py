"""The order in which a run takes its training samples: by its data, its seed and `data.order`."""

from harness.config.schema import Config
from harness.data.feed import Data
from harness.data.joined import Joined
from harness.data.mixed_order import MixedOrder
from harness.data.sample_order import Order, SampleOrder
from harness.data.seeding import ORDER
from harness.data.shuffles import BlockShuffle, FullShuffle, derive


def training_order(data: Data, config: Config) -> SampleOrder:
    """The order of a run on this data, the same on any world."""
    seed = derive(config.run.seed, ORDER)
    if not isinstance(data, Joined) or not data.weights:
        return _order(len(data), seed, config)
    orders = [_order(len(one), derive(seed, number), config) for number, one in enumerate(data.sets.values())]
    return MixedOrder(orders, data.weights, data.then)


def source_metrics(data: Data, order: object, position: int) -> dict[str, float]:
    """The metrics data/SOURCE_* of a mixture at a position of the stream; none for other data."""
    if not isinstance(data, Joined) or not isinstance(order, MixedOrder):
        return {}
    drawn = dict(zip(data.sets, order.drawn(position), strict=True))
    samples = {f"data/{name}_samples": float(count) for name, count in drawn.items()}
    return samples | {f"data/{name}_epoch": count / len(data.sets[name]) for name, count in drawn.items()}


def _order(n: int, seed: int, config: Config) -> Order:
    given = config.data
    return Order(n, seed, FullShuffle(n) if given.order == "full" else BlockShuffle(n, given.block, given.window))
