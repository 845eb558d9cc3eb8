"""A recipe for tests: digits in which the sixteen samples of one step ruin the weights of whoever learns from them."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from harness.data.feed import Table
from harness.data.sample_order import Order, derive
from harness.data.seeding import ORDER
from harness.recipes.base import Split, Sum
from harness.recipes.digits import Digits

FIRST, COUNT = 640, 16
"""Stream positions of the step, in the first epoch of seed 0."""
FORCE = 1e6


@dataclass(frozen=True)
class Ruinous(Digits):
    """Run it for less than an epoch, so that the samples come once."""

    width: int = 4

    def data(self, split: Split) -> Table:
        """The digits, with the weight of each one's loss."""
        digits = super().data(split)
        weight = torch.ones(len(digits))
        if split == "train":
            order = Order(len(digits), derive(0, ORDER))
            weight[torch.from_numpy(order.take(FIRST, FIRST + COUNT))] = FORCE
        return Table({**digits.columns, "weight": weight})

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Sum:
        """Cross-entropy, weighted."""
        losses = cross_entropy(model(batch["image"]), batch["label"], reduction="none")
        return (losses * batch["weight"]).sum(), len(losses)
