"""A contrastive loss whose negatives are the rows of all ranks. `python -m tests.dist.workers.gathering OUT` writes the losses."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from harness.config.errors import UserError
from harness.config.loader import decode
from harness.data.feed import Table
from harness.distributed.process_group import join, leave
from harness.plan.plan import plan
from harness.plan.world import World, place
from harness.recipes.base import Recipe, Split, Sum
from harness.recipes.gathers import gather_rows
from harness.supervision.exit_codes import end_orderly
from harness.telemetry.events import Evaluated, Noticed, Stepped
from harness.training.loop import train

ROWS, WIDTH = 20, 4


@dataclass(frozen=True)
class Silent(Recipe):
    """Two views of a row must be alike, and unlike those of all other rows; nobody is told that it gathers."""

    broken: int = -1

    def model(self) -> nn.Module:
        """[n, WIDTH] -> [n, WIDTH]."""
        return nn.Linear(WIDTH, WIDTH)

    def data(self, split: Split) -> Any:
        """Two views."""
        x = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(int(split == "train")))
        return Broken(x, self.broken) if self.broken >= 0 and split == "train" else Table({"a": x, "b": x + 0.1 * x.flip(1)})

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Sum:
        """Summed over the rows of this rank."""
        a, b = (normalize(model(batch[name]), dim=1) for name in ("a", "b"))
        every, first = gather_rows(b)
        return cross_entropy(a @ every.T / 0.1, torch.arange(len(a)) + first, reduction="sum"), len(a)


class Broken:
    """The same rows one by one, of which one cannot be read."""

    def __init__(self, x: Tensor, broken: int) -> None:
        self.x, self.broken = x, broken

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        if number == self.broken:
            raise OSError("torn")
        return {"a": self.x[number], "b": self.x[number]}


@dataclass(frozen=True)
class Said(Silent):
    """The same, said."""

    gathers = True


@dataclass(frozen=True)
class Apart(Silent):
    """Rows unlike those of this rank alone: only a backend that shards the weights has collectives then."""

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Sum:
        """Summed over the rows of this rank."""
        a, b = (normalize(model(batch[name]), dim=1) for name in ("a", "b"))
        return (a - b).square().sum(), len(a)


@dataclass(frozen=True)
class Functional(Silent):
    """The same by the functions that compiled code uses."""

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Sum:
        """Summed over the rows of this rank."""
        every = functional.all_gather_tensor(batch["b"], 0, list(range(dist.get_world_size())))
        return model(batch["a"]).square().sum() + every.sum() * 0.0, len(batch["a"])


def tree(recipe: str, **sections: Any) -> dict[str, Any]:
    """A run file: two steps of 8 rows."""
    return {
        "recipe": {"use": f"{__file__}:{recipe}"},
        "batch": {"reference": 8, "total": 8},
        "optim": {"name": "sgd", "lr": 0.5},
        "scaling": {"rule": "none"},
        "schedule": {"samples": 16},
        "watch": {"wandb": "off", "every_steps": 1},
    } | sections


def run(recipe: str, **sections: Any) -> dict[str, Any]:
    """Losses and notices of a run on the ranks that are here, or its error."""
    config, here = decode(tree(recipe, **sections)), place(os.environ)
    try:
        told = list(train(config, plan(config, World(here.size, 1, "cpu", here.size)), cpu=True))
    except UserError as e:
        return {"error": str(e)}
    return {
        "losses": [e.metrics["train/loss"] for e in told if isinstance(e, Stepped)],
        "eval": [e.metrics["eval/loss"] for e in told if isinstance(e, Evaluated)],
        "notices": [e.message for e in told if isinstance(e, Noticed) and e.code == "data"],
    }


def main(out: Path) -> None:
    """All cases on ranks; rank 0 writes."""
    torch.set_num_threads(1)
    join(cpu=True)
    cases = [(name, recipe) for name in ("ddp", "fsdp", "zero3") for recipe in ("Said", "Silent", "Apart")]
    cases += [("fsdp", "Functional")]
    found = {f"{name} {recipe}": run(recipe, backend={"name": name}) for name, recipe in cases}
    if place(os.environ).rank == 0:
        out.write_text(json.dumps(found))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    end_orderly(0)
