"""Worker of test_noise: how many of eight steps are measured by the ranks' own gradients, rule by rule."""

import json
import os
import sys

import torch

from harness.config.loader import decode
from harness.data.feed import Feed
from harness.data.sample_order import Order, step_shards
from harness.distributed.process_group import join, leave
from harness.engine.factory import open_engine
from harness.plan.plan import plan
from harness.plan.world import World, place
from harness.recipes.base import load_recipe
from harness.recipes.contract import train_split
from harness.supervision.exit_codes import end_orderly

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
    data = train_split(recipe, 0)
    feed = Feed(data, order=Order(len(data), 0), device=engine.device, dtype=torch.float32)
    engine.begin()
    for _, micros in feed.steps(step_shards(0, BATCH * STEPS, BATCH, p.micro_batch, here.size, engine.rank, engine.processes)):
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
    end_orderly(0)
