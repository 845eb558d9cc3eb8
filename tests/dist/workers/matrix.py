"""Worker of test_matrix: every backend saves on this world, or resumes from everything that was saved on any."""

import json
import os
import sys
from pathlib import Path

import torch

from harness.distributed.process_group import join, leave
from harness.plan.world import place
from harness.supervision.exit_codes import end_orderly
from tests.dist.workers.backends import Told, backend, fork, told

BACKENDS = ("ddp", "fsdp", "zero0", "zero1", "zero2", "zero3")
WORLDS = (1, 2, 4)
SAVED, STEPS = 6, 3
"""Steps before the checkpoint, and after it."""


def main(stage: str, folder: Path, texts: str) -> None:
    """`save`: one run folder for each backend. `load`: STEPS steps from each folder of each world, by each backend."""
    torch.set_num_threads(1)
    join(cpu=True)
    here = place(os.environ)
    results: dict[str, Told] = {}
    for name in BACKENDS:
        if stage == "save":
            run = {"dir": str(folder / f"{name}-{here.size}"), "stop_after_steps": SAVED}
            results[name] = told(name, "adamw", texts, backend=backend(name), run=run)
            continue
        for saver in BACKENDS:
            for world in WORLDS:
                copy = folder / "loads" / f"{saver}-{world}-{name}-{here.size}"
                fork(folder / f"{saver}-{world}", copy)
                run = {"dir": str(copy), "stop_after_steps": STEPS}
                results[f"{saver} {world} {name}"] = told(name, "adamw", texts, backend=backend(name), run=run)
    if here.rank == 0:
        (folder / f"{stage}-{here.size}.json").write_text(json.dumps(results))
    leave()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
    end_orderly(0)
