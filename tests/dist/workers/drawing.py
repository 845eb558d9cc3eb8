"""Recipes that draw random numbers nobody seeded, as people write them: by numpy, `random` and torch, in every method.

As a program on ranks: `python -m tests.dist.workers.drawing OUT` writes what each kind gives, or the error that it ends with.
"""

import json
import os
import random
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset, random_split

from harness.config.errors import UserError
from harness.config.loader import decode
from harness.data.feed import Data, Table, default_collate
from harness.distributed.process_group import join, leave
from harness.plan.plan import plan
from harness.plan.world import World, place
from harness.recipes.base import Recipe, Split, Sum
from harness.supervision.exit_codes import end_orderly
from harness.telemetry.events import Evaluated, Event, Noticed, Stepped
from harness.tools.verify import verify
from harness.training.loop import train

ROWS, WIDTH = 64, 8


class Permuted(nn.Module):
    """A linear layer behind a permutation of its inputs that numpy draws and no checkpoint keeps."""

    order: Tensor

    def __init__(self, entropy: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, 1)
        order = np.random.default_rng().permutation(WIDTH) if entropy else np.random.permutation(WIDTH)
        self.register_buffer("order", torch.from_numpy(order), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[n, WIDTH] -> [n]."""
        y: Tensor = self.linear(x[:, self.order])
        return y.squeeze(1)


class Jittered:
    """Rows with noise, drawn when a row is read; from `own` where there is one."""

    def __init__(self, x: Tensor, own: "np.random.Generator | None") -> None:
        self.x, self.own = x, own

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        if self.own is not None:
            noise = self.own.normal()
        elif number % 3:  # others draw less, or nothing
            noise = np.random.normal() + random.gauss(0, 1) + float(torch.randn(()))
        else:
            noise = 0.0
        row = self.x[number] + 0.1 * noise
        return row, self.x[number].sum()


Kind = Literal[
    "model", "model entropy", "loss", "split", "split entropy", "rows", "rows entropy", "collate", "metrics", "same rows"
]


CUT = ("split", "split entropy", "same rows")
"""Kinds that make both splits of the same rows."""


@dataclass(frozen=True)
class Drawing(Recipe):
    """Linear regression; `kind` says what draws. `entropy`: from a generator that no seed reaches."""

    kind: Kind = "loss"
    workers: int = 0

    def model(self) -> nn.Module:
        """[n, WIDTH] -> [n]."""
        return (
            Permuted(self.kind == "model entropy")
            if self.kind.startswith("model")
            else nn.Sequential(nn.Linear(WIDTH, 1), nn.Flatten(0))
        )

    def data(self, split: Split) -> Data:
        """Rows of noise whose sum is to be learnt."""
        x = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(int(split == "train" or self.kind in CUT)))
        if self.kind.startswith("split"):
            generator = torch.Generator().manual_seed(int(np.random.default_rng().integers(1 << 30)))
            both = random_split(TensorDataset(x, x.sum(1)), [0.75, 0.25], *([generator] if self.kind == "split entropy" else []))
            return both[split == "valid"]
        if self.kind.startswith("rows"):
            return Jittered(x, np.random.default_rng() if self.kind == "rows entropy" else None)
        if self.kind == "collate":
            return TensorDataset(x, x.sum(1))
        return Table({"x": x, "y": x.sum(1)})

    def collate(self, samples: list[Any]) -> Any:
        """Masks entries by chance."""
        x, y = default_collate(samples)
        return (x * torch.from_numpy(np.random.rand(*x.shape) > 0.5), y) if self.kind == "collate" else (x, y)

    def loss(self, model: nn.Module, batch: Any) -> Sum:
        """Squared error; mixed up as the authors of mixup wrote it."""
        x, y = (batch["x"], batch["y"]) if isinstance(batch, dict) else batch
        if self.kind == ("loss" if model.training else "metrics"):
            share = np.random.beta(1.0, 1.0) * random.random()  # noqa: S311
            x, y = share * x + (1 - share) * x.flip(0), (share * y + (1 - share) * y.flip(0)) ** 2
        return (model(x) - y).square().sum(), len(x)


def tree(kind: Kind, *, micro: int = 4, workers: int = 0) -> dict[str, Any]:
    """A run file: six steps of 16 rows."""
    return {
        "recipe": {"use": f"{__file__}:Drawing", "kind": kind, "workers": workers},
        "batch": {"reference": 16, "total": 16, "micro": micro},
        "optim": {"name": "sgd", "lr": 0.02},
        "scaling": {"rule": "none"},
        "schedule": {"samples": 96},
        "watch": {"wandb": "off", "every_steps": 1},
    }


def events(config_tree: dict[str, Any], folder: Path | None = None, world: int | None = None) -> list[Event]:
    """All that a run on the ranks that are here tells; `world`: on as many simulated ones."""
    config, here = decode(config_tree), place(os.environ)
    return list(train(config, plan(config, World(world or here.size, 1, "cpu", here.size)), cpu=True, folder=folder))


def losses(told: list[Event]) -> list[float]:
    """Of every step, and of the evaluation."""
    steps = [e.metrics["train/loss"] for e in told if isinstance(e, Stepped)]
    return [x for x in [*steps, *(e.metrics["eval/loss"] for e in told if isinstance(e, Evaluated))] if x is not None]


def notices(told: list[Event], code: str) -> list[str]:
    """What was said under a code."""
    return [e.message for e in told if isinstance(e, Noticed) and e.code == code]


def parts(split: Split) -> list[int]:
    """The indices of a split that random_split has cut."""
    from harness.recipes.base import open_data

    data = open_data(Drawing(kind="split"), split, 0)
    assert isinstance(data, Subset)
    return list(data.indices)


def main(out: Path) -> None:
    """On ranks: {kind: losses or error}, and what verify finds of some; rank 0 writes."""
    torch.set_num_threads(1)
    join(cpu=True)
    here = place(os.environ)
    found: dict[str, Any] = {}
    kinds: tuple[Kind, ...] = (
        "model",
        "model entropy",
        "loss",
        "split",
        "split entropy",
        "rows",
        "rows entropy",
        "collate",
        "metrics",
    )
    for kind in kinds:
        try:
            told = events(tree(kind))
            found[kind], found[f"notices {kind}"] = losses(told), notices(told, "data")
        except UserError as e:
            found[kind] = str(e)
    for kind in ("rows", "rows entropy", "collate", "loss"):
        findings = verify(decode(tree(kind)), World(here.size, 1, "cpu", here.size), cpu=True)
        found[f"verify {kind}"] = [asdict(f) for f in findings]
    if here.rank == 0:
        out.write_text(json.dumps(found))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    end_orderly(0)
