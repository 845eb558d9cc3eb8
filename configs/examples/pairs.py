"""Which left half of a digit goes with which right half: two small towers and CLIP's loss over the pairs of all ranks."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from harness import Recipe, Table, gather_rows


class Towers(nn.Module):
    """Two towers into one space, and the scale of their cosine similarities (as its logarithm)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.left, self.right = (nn.Sequential(nn.Linear(32, width), nn.GELU(), nn.Linear(width, 16)) for _ in range(2))
        self.scale = nn.Parameter(torch.tensor(10.0).log())

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        return normalize(self.left(left), dim=1) * self.scale.exp(), normalize(self.right(right), dim=1)


@dataclass(frozen=True)
class Pairs(Recipe):
    """Each pass holds as many pairs on every rank, and every pair is told from those of all ranks."""

    gathers: ClassVar[bool] = True
    width: int = 64

    def model(self) -> nn.Module:
        return Towers(self.width)

    def data(self, split: str) -> Table:
        image = torch.tensor(load_digits().images).float() / 8 - 1
        rows = slice(1536, 1792) if split == "valid" else slice(1536)
        return Table({"left": image[rows, :, :4].flatten(1), "right": image[rows, :, 4:].flatten(1)})

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        return self._compared(model, batch, lambda logits, own: cross_entropy(logits, own, reduction="sum"))

    def metrics(self, model: nn.Module, batch: Any) -> dict[str, tuple[Tensor, int]]:
        loss, right = self.loss(model, batch), self._compared(model, batch, lambda logits, own: (logits.argmax(1) == own).sum())
        return {"loss": loss, "accuracy_pct": (100.0 * right[0], right[1])}

    def _compared(self, model: nn.Module, batch: Any, measure: Any) -> tuple[Tensor, int]:
        """The mean of both directions, summed over this rank's pairs: own halves against the other halves of all ranks."""
        left, right = model(batch["left"], batch["right"])
        (every_left, first), (every_right, _) = gather_rows(left), gather_rows(right)
        own = torch.arange(len(left), device=left.device) + first
        return (measure(left @ every_right.T, own) + measure(right @ every_left.T, own)) / 2, len(left)
