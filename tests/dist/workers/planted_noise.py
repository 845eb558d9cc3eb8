"""Recipes whose gradient noise scale is known, for test_noise: alone, and as a worker on the ranks that are here."""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from harness.config.loader import decode
from harness.data.feed import Micro, Table
from harness.data.sample_order import Chunk
from harness.distributed.process_group import join, leave
from harness.engine.factory import open_engine
from harness.plan.plan import plan
from harness.plan.world import World, place
from harness.recipes.base import Recipe, Split, Sum
from harness.supervision.exit_codes import end_orderly
from harness.telemetry.noise_scale import NoiseScale

MOST = 9
"""Items in a sample: 1 to MOST."""


class Point(nn.Module):
    """One weight, [1, size], at `start`."""

    def __init__(self, size: int, start: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1, size), start))

    def forward(self, x: Tensor) -> Tensor:
        """x [n, size] . weight: [n, 1]."""
        return x @ self.weight.T


@dataclass(frozen=True)
class Quadratic(Recipe):
    """Half the squared distance from the weight to each item; samples hold 1 to MOST items.

    `shared` is the spread of what a sample's items have in common, `own` that of each item; the gradient's norm is 1.
    """

    item: ClassVar[str] = "token"
    size: int = 50
    shared: float = 0.0
    own: float = 1.0

    def model(self) -> nn.Module:
        """The weight at 0."""
        return Point(self.size)

    def data(self, split: Split) -> Table:
        """Columns x float [n, MOST, size] and count int64 [n]."""
        generator = torch.Generator().manual_seed(0)
        rows = 1000
        x = self.own * torch.randn(rows, MOST, self.size, generator=generator)
        x += self.shared * torch.randn(rows, 1, self.size, generator=generator) + self.size**-0.5
        return Table({"x": x, "count": torch.randint(1, MOST + 1, (rows,), generator=generator)})

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Sum:
        """Summed over the items that count."""
        real = torch.arange(MOST) < batch["count"][:, None]
        distance = (model.get_parameter("weight") - batch["x"]).square().sum(-1) / 2
        return (distance * real).sum(), batch["count"].sum()

    def truth(self) -> float:
        """The noise scale of a step's gradient, a sum over samples divided by their items, from each sample's own."""
        columns = self.data("train").columns
        real = torch.arange(MOST) < columns["count"][:, None]
        each, count = (columns["x"] * real[..., None]).sum(1).double(), columns["count"].double()
        mean = each.sum(0) / count.sum()
        spread = (each - count[:, None] * mean).square().sum(1).mean() / count.mean() ** 2
        return float(spread / mean.square().sum())


@dataclass(frozen=True)
class Slope(Recipe):
    """A loss that is linear in the weight, so that its gradient has the same mean and noise everywhere; the noise scale is `scale`.

    `far` is where the weight lies: its norm over that of the gradient, which is 1.
    """

    size: int = 500
    scale: float = 100.0
    far: float = 1000.0

    def model(self) -> nn.Module:
        """The weight, at `far` in a direction whose cosine with the gradient is a half."""
        return Point(self.size, self.far / self.size**0.5)

    def data(self, split: Split) -> Table:
        """Column x float [n, size]."""
        x = torch.randn(16_000 if split == "train" else 10, self.size, generator=torch.Generator().manual_seed(0))
        half = torch.arange(self.size) % 4 > 0
        return Table({"x": x * (self.scale / self.size) ** 0.5 + (2.0 * half - 1) / self.size**0.5})

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Sum:
        """x . weight, summed."""
        return model(batch["x"]).sum(), len(batch["x"])


def scale_of(recipe: Quadratic, world: World, total: int, micro: int, steps: int) -> tuple[str, NoiseScale]:
    """(the estimator, the noise scale) after steps of random rows at the same weights, on the ranks that are here."""
    c = decode(
        {
            "recipe": {"use": "digits"},
            "batch": {"reference": total, "total": total, "micro": micro},
            "optim": {"lr": 1e-30},
            "schedule": {"samples": total * steps},
            "watch": {"wandb": "off", "every_steps": steps},
        }
    )
    engine = open_engine(c, plan(c, world), recipe, cpu=True)
    data, generator = recipe.data("train"), torch.Generator().manual_seed(1 + engine.rank)
    mine = total // engine.processes
    for _ in range(steps):
        rows = torch.randint(len(data), (mine,), generator=generator)
        engine.step([Micro(data.take(part), Chunk(0, micro)) for part in torch.split(rows, micro)], 1e-30, False)
    sums, small = engine.read().noise, micro if engine.estimator == "passes" else total / engine.processes
    scaled = (total / small) ** 2 / sums.steps
    squares = scaled * sums.small_square, small, sums.big_square / sums.steps, total
    return engine.estimator, NoiseScale().after(*squares, share_square=scaled * sums.share_square)


def of_ranks() -> Iterator[dict[str, Any]]:
    """Two ranks: one pass each, and four."""
    world, recipe = World(place(os.environ).size, device="cpu"), Quadratic(size=200, own=0.5)
    for micro, total in ((2, 4), (8, 16), (1, 8)):
        estimator, scale = scale_of(recipe, world, total, micro, 500)
        yield {"case": [estimator, micro, total], "measured": scale.samples, "true": recipe.truth()}


def main() -> None:
    """Print what is measured, on rank 0."""
    torch.set_num_threads(1)
    join(cpu=True)
    found = list(of_ranks())
    if place(os.environ).rank == 0:
        sys.stdout.write(json.dumps(found) + "\n")
    leave()


if __name__ == "__main__":
    main()
    end_orderly(0)
