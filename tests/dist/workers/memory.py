"""The most that tensors took in real steps of a rank, by torch's own allocator: `python -m tests.dist.workers.memory RUN.yaml`."""

import gc
import json
import os
import sys
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from harness.config.loader import load
from harness.data.feed import Feed
from harness.data.sample_order import Order, step_shards
from harness.distributed.process_group import join, leave
from harness.engine.factory import open_engine
from harness.plan.plan import plan
from harness.plan.world import World, place
from harness.recipes.base import load_recipe
from harness.recipes.contract import train_split
from harness.supervision.exit_codes import end_orderly


def main() -> None:
    """Two steps; the peak over the model's making and both."""
    torch.set_num_threads(1)
    here, config = place(os.environ), load(Path(sys.argv[1]))
    join(cpu=True)
    recipe = load_recipe(config.recipe)
    data = train_split(recipe, 0)
    planned = plan(config, World(here.size, 1, "cpu", here.size), len(data))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        engine = open_engine(config, planned, recipe, cpu=True)
        feed = Feed(data, order=Order(len(data), 0), device=engine.device, dtype=engine.dtype, collate=recipe.collate)
        batch = planned.global_batch
        for _, micros in feed.steps(
            step_shards(0, 2 * batch, batch, planned.micro_batch, here.size, engine.rank, engine.processes)
        ):
            engine.step(micros, 1e-3, False, close=True)
        gc.collect()  # DeepSpeed leaves cycles, which are no state
    now = peak = 0
    for event in watched.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    if here.rank == 0:
        print("RESULT", json.dumps({"peak": peak, "state": now}), flush=True)
    leave()


if __name__ == "__main__":
    main()
    end_orderly(0)
