"""Worker of test_noise: on the ranks that are here, how many of eight steps are measured by the ranks' own gradients, rule by rule."""

import json
import os
import sys

import torch

from harness.engine.open import open_engine
from harness.engine.process import join, leave
from harness.parts.data import Feed
from harness.parts.recipe import load_recipe
from harness.plan.decode import decode
from harness.plan.order import Order, deals
from harness.plan.plan import plan
from harness.plan.world import World, place

BATCH, STEPS = 32, 8


def measured(rule: str) -> tuple[str, float]:
    """(the estimator, steps measured)."""
    here = place(os.environ)
    c = decode(
        {
            "recipe": {"use": "digits", "width": 4},
            "batch": {"reference": BATCH // 2, "total": BATCH},
            "optim": {"lr": 0.01, "momentum": 0.9},
            "scaling": {"rule": rule},
            "schedule": {"samples": BATCH * STEPS},
            "watch": {"wandb": "off"},
        }
    )
    recipe = load_recipe(c.recipe)
    p = plan(c, World(here.size, device="cpu"), 1437)
    engine = open_engine(c, p, recipe, cpu=True)
    data = recipe.data("train")
    feed = Feed(data, order=Order(len(data), 0), device=engine.device, dtype=torch.float32)
    engine.begin()
    for _, micros in feed.steps(deals(0, BATCH * STEPS, BATCH, p.micro_batch, here.size, engine.rank, engine.processes)):
        engine.step(micros, 0.01, False)
    return engine.estimator, engine.read().noise.steps


def main() -> None:
    """Print what is measured, on rank 0."""
    torch.set_num_threads(1)
    join(cpu=True)
    found = {rule: measured(rule) for rule in ("none", "adascale")}
    if place(os.environ).rank == 0:
        sys.stdout.write(json.dumps(found) + "\n")
    leave()


if __name__ == "__main__":
    main()
