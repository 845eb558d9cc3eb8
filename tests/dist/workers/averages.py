"""Worker of test_average: keeps an average of the weights on the ranks that are here, stops, continues; rank 0 writes it."""

import json
import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from harness.config.loader import decode
from harness.distributed.process_group import agree, join, leave
from harness.plan.plan import plan
from harness.plan.world import World, place
from harness.supervision.exit_codes import end_orderly
from harness.telemetry.events import Evaluated, Noticed
from harness.training.loop import train

RECIPE = """
from dataclasses import dataclass
from torch import nn
from harness.recipes.digits import Digits

@dataclass(frozen=True)
class Normed(Digits):
    def model(self):
        one = nn.Linear(64, self.width)
        return nn.Sequential(nn.Flatten(), one, nn.BatchNorm1d(self.width), nn.ReLU(), nn.Linear(self.width, 10))
"""
"""A net with BatchNorm, whose running statistics differ by rank."""
STOP, STEPS = 20, 45


def config(folder: Path, backend: str, **sections: dict[str, Any]) -> dict[str, Any]:
    """45 steps at k = 2; in float64, so that layouts agree, which zero0 has not."""
    tree: dict[str, dict[str, Any]] = {
        "recipe": {"use": "digits", "width": 4},
        "batch": {"reference": 16, "total": 32, "micro": 8},
        "optim": {"lr": 0.05, "momentum": 0.9, "ema": 0.95},
        "scaling": {"rule": "none"},
        "schedule": {"samples": 32 * STEPS},
        "backend": {"name": backend},
        "eval": {"every_samples": 320} | ({"sharpness": 50} if backend != "fsdp" else {}),
        "watch": {"wandb": "off"},
        "run": {"dir": str(folder)},
    }
    precision = "fp32" if backend == "zero0" else "fp64"
    return {"precision": precision} | {name: tree.get(name, {}) | sections.get(name, {}) for name in {*tree, *sections}}


def told(tree: dict[str, Any], until: int | None = None) -> dict[str, Any]:
    """Train on the processes that are here: the evaluations and notices."""
    here = place(os.environ)
    c = decode(tree | {"run": tree["run"] | {"stop_after_steps": until}})
    events = list(train(c, plan(c, World(here.size, 1, "cpu", here.size)), cpu=True, folder=Path(str(c.run.dir))))
    return {
        "eval": {str(e.samples): e.metrics for e in events if isinstance(e, Evaluated)},
        "notices": [e.message for e in events if isinstance(e, Noticed)],
    }


def main(folder: Path, chains: list[str]) -> None:
    """Each backend: to STOP steps, then on with the next of its chain from its checkpoint; and the net with BatchNorm."""
    torch.set_num_threads(1)
    join(cpu=True)
    recipe = folder / "normed.py"
    results = {}
    followed = {a: b for chain in chains for a, b in pairwise([*chain.split(","), chain.split(",")[0]])}
    for backend, other in followed.items():
        run = folder / f"{backend}-{place(os.environ).size}"
        first = told(config(run, backend), STOP)
        agree("")
        second = told(config(run, other))
        results[backend] = {"eval": first["eval"] | second["eval"], "notices": second["notices"]}
        normed = config(folder / f"normed-{run.name}", backend, recipe={"use": f"{recipe}:Normed", "width": 4})
        results[f"normed {backend}"] = told(normed)
        results[f"normed {backend} again"] = told(normed | {"schedule": {"samples": 32 * (STEPS + 1)}})
    if place(os.environ).rank == 0:
        (folder / f"told-{place(os.environ).size}.json").write_text(json.dumps(results))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
    end_orderly(0)
