"""Models with frozen weights. As a program on ranks: `python -m tests.dist.workers.kept_types FOLDER` trains, stops, continues."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.config.errors import UserError
from harness.config.loader import decode
from harness.data.feed import Table
from harness.distributed.process_group import agree, join, leave
from harness.engine.factory import open_engine
from harness.plan.plan import plan
from harness.plan.world import World, place
from harness.recipes.base import Recipe, Split, Sum, load_recipe
from harness.supervision.exit_codes import end_orderly
from harness.telemetry.events import Evaluated, Started, Stepped
from harness.training.loop import train

ROWS = 64
STORED = (torch.uint16, torch.uint32, torch.int8, torch.float8_e4m3fn)


class Adapted(nn.Module):
    """A frozen base in bfloat16, a trained adapter in float32, and where it is wanted a teacher, which follows the adapter.

    Quantised weights are kept in types that are only stored.
    """

    def __init__(self, seed: int, teacher: bool, thawed: bool, quantised: bool) -> None:
        super().__init__()
        self.base, self.adapter, self.out = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 1)
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.base.weight.copy_(torch.randn(16, 4, generator=draw))
        self.base.bfloat16().requires_grad_(thawed)
        self.register_buffer("scale", torch.ones(1))
        self.teacher = nn.Linear(16, 16).requires_grad_(False) if teacher else None
        self.quantised = nn.ParameterList(nn.Parameter(torch.ones(16).to(kind), requires_grad=False) for kind in STORED * quantised)

    def forward(self, x: Tensor) -> Tensor:
        """[n, 4] -> [n]."""
        base = self.base(x.to(self.base.weight.dtype)).float()
        hidden = self.adapter(base)
        if self.teacher is not None:
            hidden = hidden - 0.5 * self.teacher(base)
        for weight in self.quantised:
            hidden = hidden * weight.float()
        y: Tensor = self.out(torch.tanh(hidden))
        return y.squeeze(1)


@dataclass(frozen=True)
class Kept(Recipe):
    """Regression with an Adapted."""

    teacher: bool = False
    thawed: bool = False
    quantised: bool = False

    def model(self) -> nn.Module:
        """The base is of the seed in the environment, which stands for the file that it is read from."""
        return Adapted(int(os.environ.get("BASE", "1")), self.teacher, self.thawed, self.quantised)

    def data(self, split: Split) -> Table:
        """64 rows."""
        x = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(1 + (split == "train")))
        return Table({"x": x, "y": x.sum(1)})

    def loss(self, model: nn.Module, batch: Any) -> Sum:
        """Squared error; the teacher takes a step towards the adapter first."""
        assert isinstance(model, Adapted)
        if model.teacher is not None and model.training and not batch["x"].is_meta:
            with torch.no_grad():
                for there, here in zip(model.teacher.parameters(), model.adapter.parameters(), strict=True):
                    there.data.mul_(0.9).add_(here.data, alpha=0.1)
        return (model(batch["x"]) - batch["y"]).square().sum(), len(batch["x"])


def tree(**sections: Any) -> dict[str, Any]:
    """The run file."""
    return {
        "recipe": {"use": f"{__file__}:Kept"} | sections.pop("recipe", {}),
        "batch": {"reference": 8, "total": 8},
        "optim": {"name": "adamw", "lr": 0.02},
        "scaling": {"rule": "none"},
        "schedule": {"samples": 160},
        "watch": {"wandb": "off", "every_steps": 1},
    } | sections


def run(folder: Path | None, stop: int | None = None, **sections: Any) -> dict[str, Any]:
    """Losses, the last evaluation, parameters, types and the refusal of a run on the ranks that are here."""
    config, here = decode(tree(**sections, run={"stop_after_steps": stop})), place(os.environ)
    planned = plan(config, World(here.size, 1, "cpu", here.size), ROWS)
    told, refused, types = [], "", {}
    try:
        engine = open_engine(config, planned, load_recipe(config.recipe), cpu=True)
        types = {name: str(p.dtype) for name, p in engine.model.named_parameters()}
        for event in train(config, planned, cpu=True, folder=folder, engine=engine):
            told.append(event)  # noqa: PERF402  what came before an error is kept
    except UserError as e:
        refused = str(e)
    return {
        "losses": [e.metrics["train/loss"] for e in told if isinstance(e, Stepped)],
        "eval": [e.metrics["eval/loss"] for e in told if isinstance(e, Evaluated)],
        "parameters": [(e.parameters, e.trained) for e in told if isinstance(e, Started)],
        "types": types,
        "refused": refused,
    }


BACKENDS = ("ddp", "fsdp", "zero0", "zero1", "zero2", "zero3")


def halves(folder: Path, **sections: Any) -> dict[str, Any]:
    """A run as a whole, one that stops after 10 of 20 steps and continues, and a resume of it with another base."""
    agree("")
    whole, first = run(None, **sections), run(folder, 10, **sections)
    agree("")
    os.environ["BASE"] = "2"
    other = run(folder, **sections)
    del os.environ["BASE"]
    agree("")
    return {"whole": whole, "first": first, "other": other, "then": run(folder, **sections)}


def main(out: Path) -> None:
    """All on all backends, and each on from ddp's; rank 0 writes."""
    torch.set_num_threads(1)
    join(cpu=True)
    found = {}
    for backend in BACKENDS:
        section = {"name": backend}
        found[backend] = halves(out / backend, backend=section)
        found[f"quantised {backend}"] = run(None, 2, backend=section, recipe={"quantised": True})
        if backend != "zero3":  # where nobody can move what lies in shards
            found[f"teacher {backend}"] = halves(out / f"teacher-{backend}", backend=section, recipe={"teacher": True})
    run(out / "crossed", 10)
    for backend in BACKENDS[1:]:
        found[f"crossed {backend}"] = run(out / "crossed", 2, backend={"name": backend})
    if place(os.environ).rank == 0:
        (out / "found.json").write_text(json.dumps(found))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    end_orderly(0)
