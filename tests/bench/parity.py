"""How far each backend on two ranks is from ddp on one: `python -m tests.bench.parity` writes configs/results/parity.json.

50 steps of bytes_lm with masked bytes, clipping and a short last step; the largest relative difference of a step's loss.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import torch

from harness.distributed.process_group import join, leave
from harness.plan.world import place
from tests.dist.test_backends import LIMITS, PARITY, losses, write_texts
from tests.dist.workers.backends import RUNS, backend, told
from tests.support.processes import ROOT, run_ranks

OUT = ROOT / "configs" / "results" / "parity.json"
OFFLOADED = {"zero1": "optimizer", "zero2": "optimizer", "zero3": "all"}


def on_ranks(names: str, out: Path, texts: str) -> None:
    """A rank's part: the runs `backend run, ...`; rank 0 writes the losses of each."""
    torch.set_num_threads(1)
    join(cpu=True)
    results = {}
    for both in names.split(","):
        name, run = both.split()
        offload = {"offload": OFFLOADED[name]} if run == "offload" else {}
        which = "adamw" if run == "offload" else run
        results[both] = losses(told(name, which, texts, backend=backend(name, **offload)))
    if place(os.environ).rank == 0:
        out.write_text(json.dumps(results))
    leave()


def main() -> None:
    """Run all and write the record."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts, out = folder / "texts", folder / "out.json"
        write_texts(texts)
        found: dict[str, list[float]] = {}
        for ranks, runs in ((1, [("ddp", run) for run in RUNS]), (2, PARITY)):
            names = ",".join(f"{b} {run}" for b, run in runs)
            run_ranks(ranks, ["tests.bench.parity", names, str(out), str(texts)], folder, limit_s=3000)
            found |= json.loads(out.read_text())
    rows = []
    for b, run in PARITY:
        reference = "adamw" if run == "offload" else run
        pairs = zip(found[f"{b} {run}"], found[f"ddp {reference}"], strict=True)
        worst = max(abs(here - there) / there for here, there in pairs)
        rows.append({"backend": b, "run": run, "worst": float(f"{worst:.1e}"), "may_be": LIMITS[reference]})
        print(rows[-1], flush=True)
    OUT.write_text(json.dumps({"command": "python -m tests.bench.parity", "steps": 50, "ranks": 2, "rows": rows}, indent=1))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        on_ranks(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
    else:
        main()
