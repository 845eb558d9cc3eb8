"""Regression on real data: the lower half of a handwritten digit from its upper half. A task of the Adam table."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import mse_loss

from harness.data.feed import Table
from harness.recipes.base import Recipe, Split, Sum
from harness.recipes.digits import Digits


@dataclass(frozen=True)
class DigitHalves(Recipe):
    """A network of fully connected layers on scikit-learn's digits; the loss is the squared error by pixel."""

    width: int = 64
    """Width of the two hidden layers."""

    def model(self) -> nn.Module:
        """float [n, 32] -> float [n, 32]."""
        layers = [nn.Linear(32, self.width), nn.GELU(), nn.LayerNorm(self.width), nn.Linear(self.width, self.width)]
        return nn.Sequential(*layers, nn.GELU(), nn.LayerNorm(self.width), nn.Linear(self.width, 32))

    def data(self, split: Split) -> Table:
        """Columns upper and lower, float [n, 32] in [-1, 1]."""
        image = Digits().data(split).columns["image"].flatten(1)
        return Table({"upper": image[:, :32], "lower": image[:, 32:]})

    def loss(self, model: nn.Module, batch: Any) -> Sum:
        """The mean squared error of a digit's pixels, summed over digits."""
        lower: Tensor = batch["lower"]
        return mse_loss(model(batch["upper"]), lower, reduction="sum") / lower.shape[1], len(lower)
