"""Worker of test_layouts: trains every layout that fits the number of processes here, and writes what each step said."""

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.config.loader import decode
from harness.distributed.process_group import join, leave
from harness.plan.plan import plan
from harness.plan.world import World, place
from harness.supervision.exit_codes import end_orderly
from harness.telemetry.events import Evaluated, Stepped
from harness.training.loop import train

STEPS = 50
SAMPLES = 64 * (STEPS - 1) + 37
"""A horizon that leaves 37 of 64 samples to the last step: three chunks of 16, so that the fourth rank has none."""

LAYOUTS: dict[str, dict[str, int]] = {
    "1x(4x16)": {"processes": 1, "world": 1, "micro": 16},
    "2x(2x16)": {"processes": 2, "world": 2, "micro": 16},
    "4x(1x16)": {"processes": 4, "world": 4, "micro": 16},
    "1x64": {"processes": 1, "world": 1, "micro": 64},
    "simulated 4": {"processes": 1, "world": 4, "micro": 16},
    "simulated 4 on 2": {"processes": 2, "world": 4, "micro": 16},
}


RUNS = (
    ("digits", "sgd", "fp64"),
    ("digits", "sgd", "fp32"),
    ("bytes_lm", "sgd", "fp64"),
    ("bytes_lm", "sgd", "fp32"),
    ("bytes_lm", "adamw", "fp64"),
    ("bytes_lm", "muon", "fp64"),
    ("bytes_lm", "chunks", "fp64"),
)
"""In float32 Adam divides rounding noise by itself where gradients vanish, so its float32 runs are no test of layouts."""


def config(recipe: str, optimizer: str, precision: str, micro: int, texts: str) -> dict[str, Any]:
    """The run file of one layout; only `batch.micro` differs."""
    recipes: dict[str, dict[str, Any]] = {
        "digits": {"use": "digits", "width": 8, "dropout": 0.0},
        "bytes_lm": {"use": "bytes_lm", "files": texts, "width": 32, "depth": 2, "heads": 2, "context": 32},
    }
    optims: dict[str, dict[str, Any]] = {
        "sgd": {"lr": 0.05, "momentum": 0.9},
        "adamw": {"name": "adamw", "lr": 3e-3, "weight_decay": 0.1},
        "chunks": {"name": "adamw", "lr": 3e-3, "weight_decay": 0.1, "second_moment": "chunks"},
        "muon": {"name": "muon", "lr": 3e-3, "adamw_lr": 2e-3, "weight_decay": 0.1},
    }
    return {
        "recipe": recipes[recipe],
        "batch": {"reference": 32, "total": 64, "micro": micro},
        "optim": optims[optimizer] | {"clip": 1.0},
        "scaling": {"rule": "auto", "warmup_samples": 640},
        "schedule": {"samples": SAMPLES, "shape": "cosine"},
        "precision": precision,
        "watch": {"wandb": "off"},
    }


def main(out: Path, texts: str) -> None:
    """Run the layouts of this many processes; rank 0 writes {name: [metrics of each step, then of the evaluation]}."""
    torch.set_num_threads(1)
    here = place(os.environ)
    join(cpu=True)
    results = {}
    for name, layout in LAYOUTS.items():
        if layout["processes"] != here.size:
            continue
        for recipe, optimizer, precision in RUNS:
            if optimizer == "chunks" and layout["micro"] != 16:
                continue  # another chunk is another second moment
            c = decode(config(recipe, optimizer, precision, layout["micro"], texts))
            events = train(c, plan(c, World(layout["world"], 1, "cpu", here.size)), cpu=True)
            told = [e for e in events if isinstance(e, Stepped | Evaluated)]
            results[f"{recipe} {optimizer} {precision} {name}"] = [e.metrics for e in told]
    if here.rank == 0:
        out.write_text(json.dumps(results))
    leave()
    kept = [o for o in gc.get_objects() if isinstance(o, nn.parallel.DistributedDataParallel)]
    assert kept == [], "what outlives the process group may abort the process at its end"


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
    end_orderly(0)
