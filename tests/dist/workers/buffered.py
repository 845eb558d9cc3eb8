"""Models with buffers of every kind. As a program on ranks: `python -m tests.dist.workers.buffered OUT` writes what comes."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from harness.config.errors import UserError
from harness.config.loader import decode
from harness.data.feed import Table
from harness.distributed.process_group import gather, join, leave
from harness.engine.factory import open_engine
from harness.engine.interface import Engine
from harness.plan.plan import plan
from harness.plan.world import World, place
from harness.recipes.base import Recipe, Split, Sum, load_recipe
from harness.supervision.exit_codes import end_orderly
from harness.telemetry.events import Evaluated, Noticed, Stepped
from harness.training.loop import train

ROWS, WIDTH = 43, 4
"""The last step of 8 has 3 rows, one pass of 4: the second rank has none."""
Kind = Literal["none", "mask", "hidden", "mean", "mean in place", "growing", "norm", "complex", "counter", "histogram", "flags"]


class Net(nn.Module):
    """A linear layer and one more thing."""

    state: Tensor

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind, self.linear = kind, nn.Linear(WIDTH, 1)
        lowest = torch.finfo(torch.float32).min
        first: dict[Kind, Tensor] = {
            "mask": torch.full((WIDTH, WIDTH), lowest).triu(1) + torch.diag(torch.tensor([lowest, 0, 0, 0])),
            "hidden": torch.full((WIDTH, WIDTH), -torch.inf).triu(1),
            "mean": torch.zeros(WIDTH),
            "mean in place": torch.zeros(WIDTH),
            "counter": torch.zeros((), dtype=torch.int64),
            "histogram": torch.zeros(3, dtype=torch.int64),
            "flags": torch.zeros(ROWS, dtype=torch.bool),
        }
        if kind in first:
            self.register_buffer("state", first[kind])
        elif kind in ("growing", "complex"):
            self.register_buffer("state", None)
        if kind == "norm":
            self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x: Tensor, row: Tensor) -> Tensor:
        """[n, WIDTH] -> [n]."""
        if self.kind in ("mask", "hidden"):
            x = (x[:, None] * x[:, :, None]).add(self.state).softmax(-1) @ x[:, :, None]
            x = x.squeeze(-1)
        elif self.kind == "norm":
            x = self.norm(x)
        elif self.training and not x.is_meta:
            self.move(x.detach(), row)
        if self.kind in ("mean", "mean in place", "complex", "growing") and self.state is not None:
            x = x - (torch.view_as_real(self.state)[:, 1] if self.state.is_complex() else self.state)[:WIDTH]
        y: Tensor = self.linear(x)
        return y.squeeze(1)

    def move(self, x: Tensor, row: Tensor) -> None:
        """What a pass in training does to the buffer."""
        if self.kind == "mean":
            self.state = 0.9 * self.state + 0.1 * x.mean(0)
        elif self.kind == "mean in place":
            self.state.mul_(0.9).add_(0.1 * x.mean(0))
        elif self.kind == "complex":
            old = torch.zeros(WIDTH, dtype=torch.complex64) if self.state is None else self.state
            self.state = 0.9 * old + 0.1 * torch.complex(x.mean(0), x.std(0))
        elif self.kind == "growing":
            old = x.mean(0) if self.state is None else 0.9 * self.state[:WIDTH] + 0.1 * x.mean(0)
            size = WIDTH if self.state is None else min(len(self.state) + WIDTH, 4 * WIDTH)
            self.state = old.repeat(size // WIDTH)
        elif self.kind == "counter":
            self.state += 1
        elif self.kind == "histogram":
            self.state += torch.bincount(row % 3, minlength=3)
        elif self.kind == "flags":
            self.state[row] = True


@dataclass(frozen=True)
class Buffered(Recipe):
    """Linear regression; row `bad` is not finite."""

    kind: Kind = "mask"
    bad: int = -1

    def model(self) -> nn.Module:
        """[n, WIDTH] -> [n]."""
        return Net(self.kind)

    def data(self, split: Split) -> Table:
        """Columns x, y and row."""
        x = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(int(split == "train"))) + 1
        y = x.sum(1)
        if split == "train" and self.bad >= 0:
            x[self.bad] = torch.nan
        return Table({"x": x, "y": y, "row": torch.arange(ROWS)})

    def loss(self, model: nn.Module, batch: Any) -> Sum:
        """Squared error."""
        return (model(batch["x"], batch["row"]) - batch["y"]).square().sum(), len(batch["x"])


def run(kind: Kind, **sections: Any) -> dict[str, Any]:
    """What comes of a run on the ranks that are here: losses, metrics of the evaluation, notices about buffers, the state."""
    tree = {
        "recipe": {"use": f"{__file__}:Buffered", "kind": kind, "bad": sections.pop("bad", -1)},
        "batch": {"reference": 8, "total": 8, "micro": 4},
        "optim": {"name": "sgd", "lr": 0.01} | sections.pop("optim", {}),
        "scaling": {"rule": "none"},
        "schedule": {"samples": ROWS},
        "watch": {"wandb": "off", "every_steps": 1},
    }
    config, here = decode(tree | sections), place(os.environ)
    planned = plan(config, World(here.size, 1, "cpu", here.size))
    engine: Engine = open_engine(config, planned, load_recipe(config.recipe), cpu=True)
    told = list(train(config, planned, cpu=True, engine=engine))
    buffers = [torch.view_as_real(b) if b.is_complex() else b for b in engine.model.buffers()]
    return {
        "losses": [e.metrics["train/loss"] for e in told if isinstance(e, Stepped)],
        "eval": [e.metrics for e in told if isinstance(e, Evaluated)][-1],
        "notices": [e.message for e in told if isinstance(e, Noticed) and e.code == "buffers"],
        "buffers": gather([b.double().flatten().tolist() for b in buffers]),
    }


def main(out: Path) -> None:
    """All kinds on ranks; rank 0 writes."""
    torch.set_num_threads(1)
    join(cpu=True)
    found: dict[str, Any] = {}
    kinds: tuple[Kind, ...] = ("mask", "hidden", "mean", "growing", "norm", "complex", "counter", "histogram", "flags")
    for kind in kinds:
        try:
            found[kind] = run(kind, optim={"ema": 0.9} if kind != "growing" else {})
        except UserError as e:
            found[kind] = str(e)
    found["mask fsdp"] = run("mask", backend={"name": "fsdp"})
    found["mean bad"] = run("mean", bad=7)
    if place(os.environ).rank == 0:
        out.write_text(json.dumps(found))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    end_orderly(0)
