"""Models that do not use all they have in every pass. `python -m tests.dist.workers.unused OUT` writes what comes."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from harness.config.errors import UserError
from harness.config.loader import decode
from harness.data.feed import Table
from harness.distributed.process_group import join, leave
from harness.engine.factory import open_engine
from harness.plan.plan import Plan, plan
from harness.plan.world import World, place
from harness.recipes.base import Recipe, Split, Sum, load_recipe
from harness.supervision.exit_codes import end_orderly
from harness.telemetry.events import Noticed, Stepped
from harness.training.loop import train

ROWS, WIDTH = 76, 4
"""The last step of 8 has 4 rows, two passes of 2: the second rank has none of its own."""
Kind = Literal["always", "never", "some", "late", "frozen later", "unfrozen later", "held"]


class Net(nn.Module):
    """Two layers, of which one is used in some passes alone, and one that is frozen."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind, self.passes = kind, 0
        self.a, self.b, self.c = (nn.Linear(WIDTH, 1) for _ in range(3))
        self.c.requires_grad_(False)

    def forward(self, x: Tensor, route: Tensor) -> Tensor:
        """[n, WIDTH] -> [n]."""
        self.passes += self.training
        if self.passes > 8:
            if self.kind == "frozen later":
                self.b.requires_grad_(False)
            if self.kind == "unfrozen later":
                self.c.requires_grad_(True)
        uses = {"never": False, "some": bool(route.any()), "late": self.passes > 8}.get(self.kind, True)
        y: Tensor = self.a(x) + self.c(x)
        return (y + self.b(x) if uses else y).squeeze(1)


@dataclass(frozen=True)
class Unused(Recipe):
    """Linear regression."""

    kind: Kind = "always"

    def model(self) -> nn.Module:
        """[n, WIDTH] -> [n]."""
        return Net(self.kind)

    def optimizer(self, model: nn.Module, plan: Plan) -> Optimizer | None:
        """Of the kind `held`: one that holds frozen weights too, in a group of their own, as torch's examples write it."""
        if self.kind != "held":
            return None
        assert isinstance(model, Net)
        lr = plan.lr(0)
        groups: list[dict[str, Any]] = [{"params": model.c.parameters(), "lr": 0.1 * lr}]
        return SGD([*groups, {"params": [*model.a.parameters(), *model.b.parameters()]}], lr=lr)

    def data(self, split: Split) -> Table:
        """Columns x, y and route: about half of the passes of two rows are routed through b."""
        draw = torch.Generator().manual_seed(int(split == "train"))
        x = torch.randn(ROWS, WIDTH, generator=draw) + 1
        return Table({"x": x, "y": x.sum(1), "route": torch.rand(ROWS, generator=draw) < 0.3})

    def loss(self, model: nn.Module, batch: Any) -> Sum:
        """Squared error."""
        return (model(batch["x"], batch["route"]) - batch["y"]).square().sum(), len(batch["x"])


def run(kind: Kind, world: int | None = None, passes: int = 2, folder: Path | None = None, **sections: Any) -> dict[str, Any]:
    """What comes of a run on the ranks that are here: losses and gradient norms, notices about parameters, the refusal."""
    tree = {
        "recipe": {"use": f"{__file__}:Unused", "kind": kind},
        "batch": {"reference": 8, "total": 8, "micro": 4 // passes},
        "optim": {"name": "sgd", "lr": 0.02, "momentum": 0.9, "weight_decay": 0.1},
        "scaling": {"rule": "none"},
        "schedule": {"samples": ROWS},
        "watch": {"wandb": "off", "every_steps": 1},
    }
    config, here = decode(tree | sections), place(os.environ)
    planned = plan(config, World(world or here.size, 1, "cpu", here.size))
    told, refused = [], ""
    try:
        engine = open_engine(config, planned, load_recipe(config.recipe), cpu=True)
        for event in train(config, planned, cpu=True, folder=folder, engine=engine):
            told.append(event)  # noqa: PERF402  what came before an error is kept
    except UserError as e:
        refused = str(e)
    return {
        "losses": [e.metrics["train/loss"] for e in told if isinstance(e, Stepped)],
        "norms": [e.metrics["train/grad_norm"] for e in told if isinstance(e, Stepped)],
        "notices": [e.message for e in told if isinstance(e, Noticed) and e.code == "unused"],
        "refused": refused,
    }


SHARDED = ("zero1", "zero2", "zero3")
BACKENDS = ("ddp", "fsdp", "zero0", *SHARDED)


def main(out: Path) -> None:
    """All kinds on all backends; rank 0 writes."""
    torch.set_num_threads(1)
    join(cpu=True)
    found: dict[str, Any] = {}
    kinds: tuple[Kind, ...] = ("never", "some", "late", "frozen later", "unfrozen later", "held")
    for backend in BACKENDS:
        for kind in kinds:
            if (backend, kind) == ("zero3", "some"):
                continue  # it hangs inside DeepSpeed: one rank gathers what the other does not
            found[f"{kind} {backend}"] = run(kind, backend={"name": backend})
    saved = out.parent / "saved"
    for part, stop in (("first", 4), ("then", None)):
        found[f"{part} fsdp"] = run("never", folder=saved, backend={"name": "fsdp"}, run={"stop_after_steps": stop})
    found["never static_graph"] = run("never", backend={"name": "ddp", "static_graph": True})
    found["never compress"] = run("never", backend={"name": "ddp", "compress": "bf16"})
    found["some compress"] = run("some", backend={"name": "ddp", "compress": "bf16"})
    found["some one pass"] = run("some", passes=1, watch={"wandb": "off", "every_steps": 3})
    if place(os.environ).rank == 0:
        out.write_text(json.dumps(found))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    end_orderly(0)
