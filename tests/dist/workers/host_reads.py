"""Worker of test_host_reads: steps on two ranks with each backend; rank 0 writes the reads of values that it saw in them."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from harness.data.feed import Micro
from harness.data.sample_order import Chunk
from harness.distributed.process_group import join
from harness.engine import fsdp
from harness.engine.factory import open_engine
from harness.plan.plan import plan
from harness.plan.world import World, place
from harness.recipes.base import load_recipe
from harness.supervision.exit_codes import end_orderly
from tests.support.host_reads import steps_read
from tests.unit.test_gpu_branches import FP16, config, micro
from tests.unit.test_host_reads import SHARDS, WHOLE, as_on_a_gpu

ADAM: dict[str, Any] = {"optim": {"name": "adamw", "lr": 0.01}, "compute": {}, "recipe": WHOLE}
TWO_PASSES = {"batch": {"reference": 16, "total": 64, "micro": 16}}
RUNS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "ddp, two passes": TWO_PASSES,
    "ddp, bf16 on its way": {"backend": {"compress": "bf16"}},
    "ddp, powersgd": ADAM | {"backend": {"compress": "powersgd"}},
    "ddp, fp16": FP16 | TWO_PASSES,
    "fsdp": SHARDS | ADAM | {"backend": {"name": "fsdp"}},
    **{name: ADAM | {"backend": {"name": name}} for name in ("zero0", "zero1", "zero3")},
}


def opened(sections: dict[str, Any]) -> Any:
    """The engine of this rank, in steps of 32 unless the sections say otherwise."""
    c = config({"batch": {"reference": 16, "total": 32}} | sections)
    return open_engine(c, plan(c, World(2), 256), load_recipe(c.recipe), cpu=True)


def poisoned(rank: int) -> list[float]:
    """PowerSGD with a loss that is not finite on one rank, after it has begun to compress: which steps were applied."""
    engine = opened(RUNS["ddp, powersgd"])
    for number in range(8):
        one = micro(rank)
        image = one.batch["image"] * (float("nan") if number == 4 and rank else 1.0)
        engine.step([Micro(one.batch | {"image": image}, Chunk(32 * number + 16 * rank, 16))], 0.01, False)
    assert engine.passes._powersgd.error_dict, "it compresses"
    found = engine.read()
    return [*(row.applied for row in found.steps), *(row.loss_sum / row.count for row in found.steps)]


def main(folder: Path) -> None:
    """All runs."""
    torch.set_num_threads(1)
    join(cpu=True)
    vars(fsdp)["open_optimizer"] = as_on_a_gpu
    told: dict[str, Any] = {}
    for name, sections in RUNS.items():
        engine = opened(sections)
        told[name] = {"reads": steps_read(engine, engine.plan.passes, None), "counted": engine.meters.syncs}
    told["poisoned"] = poisoned(place(os.environ).rank)
    if place(os.environ).rank == 0:
        (folder / "told.json").write_text(json.dumps(told))
    end_orderly(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
