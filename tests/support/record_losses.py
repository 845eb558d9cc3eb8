"""Records losses and gradient norms of untroubled runs, for test_spikes: `python -m tests.support.record_losses`, 5 minutes."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.config.loader import decode
from harness.plan.plan import plan
from harness.plan.world import World
from harness.recipes.base import load_recipe
from harness.recipes.contract import train_split
from harness.telemetry.events import Stepped
from harness.training.loop import train

OUT = Path(__file__).parents[1] / "golden" / "losses.npz"
STEPS = 25_000
RUNS: dict[str, dict[str, Any]] = {
    "digits_sgd_8": {
        "recipe": {"use": "digits", "width": 8},
        "batch": {"reference": 8, "total": 8},
        "optim": {"lr": 0.01, "momentum": 0.9},
        "schedule": {"samples": 8 * STEPS, "shape": "cosine"},
    },
    "digits_dropout_32": {
        "recipe": {"use": "digits", "width": 8, "dropout": 0.5},
        "batch": {"reference": 32, "total": 32},
        "optim": {"lr": 0.02, "momentum": 0.9},
        "schedule": {"samples": 32 * STEPS, "shape": "step", "milestones": [32 * 12_000]},
    },
    "digits_adam_16": {
        "recipe": {"use": "digits", "width": 4, "dropout": 0.3},
        "batch": {"reference": 16, "total": 16},
        "optim": {"name": "adam", "lr": 1e-3},
        "schedule": {"samples": 16 * STEPS},
    },
    "bytes_lm_adamw_16": {
        "recipe": {"use": "bytes_lm", "width": 16, "depth": 1, "heads": 2, "context": 32, "max_bytes": 400_000},
        "batch": {"reference": 16, "total": 16},
        "optim": {"name": "adamw", "lr": 3e-3, "clip": 1.0},
        "schedule": {"samples": 16 * STEPS, "shape": "cosine"},
    },
}


def main() -> None:
    """Train each run and write its curves, float16."""
    torch.set_num_threads(1)
    curves = {}
    for name, tree in RUNS.items():
        c = decode(tree | {"watch": {"wandb": "off", "noise_scale": False}})
        p = plan(c, World(1, device="cpu"), len(train_split(load_recipe(c.recipe), c.run.seed)))
        told = [e.metrics for e in train(c, p, cpu=True) if isinstance(e, Stepped)]
        curves[f"{name}_loss"] = np.array([m["train/loss"] for m in told], np.float16)
        curves[f"{name}_log_grad"] = np.log(np.array([m["train/grad_norm"] for m in told])).astype(np.float16)
    np.savez_compressed(OUT, **curves)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
