"""What each backend keeps on a rank between two steps, in bytes per weight: every tensor alive in the process, counted once.

`python -m tests.bench.memory` starts the ranks and writes configs/results/memory.json. What is not counted: the gradients and the
activations, which live within a step, and the block at work, which fsdp and zero3 gather.
"""

import gc
import json
import os
import sys
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import torch

from harness.config.loader import decode
from harness.data.feed import Micro
from harness.data.sample_order import Chunk
from harness.distributed.process_group import join, leave
from harness.engine.factory import open_engine
from harness.plan.plan import plan
from harness.plan.world import World, place
from harness.recipes.base import load_recipe
from tests.support.processes import ROOT, run_ranks

OUT = ROOT / "configs" / "results" / "memory.json"
BACKENDS = ("ddp", "fsdp", "zero0", "zero1", "zero2", "zero3")
PRECISIONS = ("fp32", "bf16")
RANKS = (1, 2, 4)


def config(backend: str, precision: str, ranks: int) -> dict[str, Any]:
    """A GPT of 3.2M weights, Adam. DeepSpeed's buffers are made small, as they do not grow with the model."""
    own = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    section: dict[str, Any] = {"name": backend}
    if backend.startswith("zero") and backend != "zero0":
        section |= {"bucket_mb": 1, **({"deepspeed": own} if backend == "zero3" else {})}
    return {
        "recipe": {"use": "bytes_lm", "width": 256, "depth": 4, "heads": 4, "context": 32, "samples": 1000},
        "batch": {"reference": ranks, "per_gpu": 1},
        "optim": {"name": "adamw", "lr": 1e-3},
        "schedule": {"epochs": 1},
        "precision": precision,
        "backend": section,
    }


def alive() -> int:
    """Bytes of all tensors of this process, storages shared by several counted once."""
    gc.collect()
    storages = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensors = [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor)]
    for tensor in tensors:
        local = tensor.to_local() if isinstance(tensor, torch.distributed.tensor.DTensor) else tensor
        storage = local.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def measure(backend: str, precision: str) -> float:
    """Bytes per weight on this rank after two steps."""
    here = place(os.environ)
    c = decode(config(backend, precision, here.size))
    engine = open_engine(c, plan(c, World(here.size, 1, "cpu", here.size)), load_recipe(c.recipe), cpu=True)
    batch = {"tokens": torch.zeros(1, 33, dtype=torch.uint8), "length": torch.tensor([33])}
    for _ in range(2):
        engine.step([Micro(batch, Chunk(0, 1))], 1e-3, False)
    return alive() / sum(p.numel() for p in load_recipe(c.recipe).model().parameters())


def main() -> None:
    """Start the ranks (no arguments), or be one of them."""
    if len(sys.argv) == 1:
        rows = []
        for backend, precision, ranks in product(BACKENDS, PRECISIONS, RANKS):
            text = run_ranks(ranks, ["tests.bench.memory", backend, precision], Path.cwd())
            found = round(float(text.split("RESULT ")[1].split()[0]), 1)
            rows.append({"backend": backend, "precision": precision, "ranks": ranks, "bytes_per_weight": found})
        OUT.write_text(json.dumps({"command": "python -m tests.bench.memory", "torch": torch.__version__, "rows": rows}, indent=1))
        return
    torch.set_num_threads(1)
    join(cpu=True)
    result = measure(*sys.argv[1:])
    if place(os.environ).rank == 0:
        print(f"RESULT {result} ", flush=True)
    leave()


if __name__ == "__main__":
    main()
