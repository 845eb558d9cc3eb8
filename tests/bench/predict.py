"""Memory predicted from shapes alone beside the most that torch gave out in real steps: configs/results/memory_peak.json.

`python -m tests.bench.predict`: ten minutes of one core. Every backend on two ranks of a CPU, steps of two passes, with a net whose
activations weigh most and one whose weights do. DeepSpeed's buckets are made small, or they would weigh more than all the rest.
"""

import json
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import torch
import yaml

from harness.config.loader import decode
from harness.engine.memory_estimate import Memory, predict
from harness.plan.world import World
from tests.support.processes import ROOT, run_ranks

OUT = ROOT / "configs" / "results" / "memory_peak.json"
BACKENDS = ("ddp", "fsdp", "zero0", "zero1", "zero2", "zero3")
PRECISIONS = ("fp32", "bf16")
NETS: dict[str, tuple[dict[str, Any], int]] = {
    "activations": ({"width": 96, "depth": 2, "heads": 3, "context": 64}, 32),
    "weights": ({"width": 256, "depth": 4, "heads": 4, "context": 32}, 4),
}
"""Knobs of bytes_lm, and the samples of a rank per step."""
RANKS = 2


def settings(backend: str, net: str, precision: str) -> dict[str, Any]:
    """A run file of the case."""
    knobs, per_gpu = NETS[net]
    section: dict[str, Any] = {"name": backend}
    if backend in ("zero1", "zero2", "zero3"):
        section |= {"bucket_mb": 4}
    if backend == "zero3":
        section |= {"deepspeed": {"zero_optimization": {"stage3_param_persistence_threshold": 0}}}
    return {
        "recipe": {"use": "bytes_lm", "max_bytes": 300_000, **knobs},
        "batch": {"reference": RANKS * per_gpu, "per_gpu": per_gpu, "micro": per_gpu // 2},
        "optim": {"name": "adamw", "lr": 1e-3},
        "scaling": {"rule": "none"},
        "schedule": {"samples": 1600},
        "watch": {"wandb": "off"},
        "precision": precision,
        "backend": section,
    }


def predicted(tree: dict[str, Any]) -> Memory:
    """From shapes, in this process."""
    return predict(decode(tree), World(RANKS, 1, "cpu"))


def measured(tree: dict[str, Any], folder: Path) -> dict[str, int]:
    """By real ranks."""
    run = folder / "run.yaml"
    run.write_text(yaml.safe_dump(tree))
    told = run_ranks(RANKS, ["tests.dist.workers.memory", str(run)], ROOT)
    found: dict[str, int] = json.loads(told.split("RESULT ")[1].splitlines()[0])
    return found


def main() -> None:
    """Measure the backends that the command line names, or all, and keep the other rows of the record.

    With --check: only predict, print the rows with what is predicted now.
    """
    if sys.argv[1:2] == ["--check"]:
        kept = [r for r in json.loads(OUT.read_text())["rows"] if r["backend"] in sys.argv[2:] and r["net"] == "weights"]
        now = [predicted(settings(r["backend"], r["net"], r["precision"])) for r in kept]
        new = [r | {"predicted": m.peak, "predicted_state": m.state} for r, m in zip(kept, now, strict=True)]
        print("RESULT", json.dumps(new))
        return
    chosen = sys.argv[1:] or list(BACKENDS)
    rows = [r for r in json.loads(OUT.read_text())["rows"] if r["backend"] not in chosen] if OUT.exists() else []
    for backend, net, precision in product(chosen, NETS, PRECISIONS):
        tree = settings(backend, net, precision)
        told = predicted(tree)
        with tempfile.TemporaryDirectory() as folder:
            real = measured(tree, Path(folder))
        row = {"backend": backend, "net": net, "precision": precision, "ranks": RANKS}
        row |= {"predicted": told.peak, "measured": real["peak"], "predicted_state": told.state, "measured_state": real["state"]}
        print(row, f"{told.peak / real['peak']:.4f} {told.state / real['state']:.4f}", flush=True)
        rows.append(row)
        rows.sort(key=lambda r: (BACKENDS.index(r["backend"]), r["net"], r["precision"]))
        about = {"command": "python -m tests.bench.predict", "torch": torch.__version__, "unit": "bytes of the first rank"}
        OUT.write_text(json.dumps(about | {"rows": rows}, indent=1).replace('\n   "', ' "').replace("\n  }", " }") + "\n")


if __name__ == "__main__":
    main()
