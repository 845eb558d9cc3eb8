"""CPU seconds of rank 0 of two to the first step, on each backend: by us, and in a loop by hand with the same parts.

`python -m tests.bench.start_backends` writes configs/results/start_backends.json, and the table in its README. Every round starts
each of them once; the medians are over the rounds, after one that is not counted. digits, SGD with momentum, gradients clipped.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness.engine.deepspeed_build import build_cpu_ops
from tests.bench.peers.__main__ import machine
from tests.bench.start import WATCHER
from tests.support.processes import ROOT
from tests.support.readmes import rewrite

OUT = ROOT / "configs" / "results" / "start_backends.json"
MARKS = ("<!-- start by backend -->", "<!-- end of start by backend -->")
ROUNDS = 3
MODEL = """
import time
import torch
import torch.distributed as dist
from harness.recipes.base import load_recipe
from harness.config.schema import RecipeConfig
recipe = load_recipe(RecipeConfig(use="digits"))
data, model = recipe.data("train"), recipe.model()
batch = data.take(torch.arange(32))
def optimizer():
    return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
"""
STEP = """
total, count = recipe.loss(model, batch)
(total / count).backward()
torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
moving.step()
"""
END = """
if dist.get_rank() == 0:
    print("CPU", time.process_time(), flush=True)
dist.destroy_process_group()
"""
WRAPPED = {
    "ddp": """
dist.init_process_group("gloo")
model = torch.nn.parallel.DistributedDataParallel(model)
moving = optimizer()
""",
    "fsdp": """
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
dist.init_process_group("gloo")
fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
moving = optimizer()
""",
}
DEEPSPEED = """
import deepspeed
deepspeed.init_distributed(dist_backend="gloo", verbose=False)
config = {"train_micro_batch_size_per_gpu": 32, "gradient_clipping": 1.0, "zero_optimization": {"stage": STAGE},
          "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
model, *_ = deepspeed.initialize(model=model, optimizer=optimizer(), config=config)
total, count = recipe.loss(model, batch)
model.backward(total / count)
model.step()
"""
BY_HAND = {name: MODEL + wrapped + STEP + END for name, wrapped in WRAPPED.items()}
BY_HAND |= {f"zero{stage}": MODEL + DEEPSPEED.replace("STAGE", str(stage)) + END for stage in (0, 1, 2, 3)}


def cpu_seconds(argv: list[str]) -> float:
    """CPU seconds of rank 0 of two, as it prints them. Raises RuntimeError."""
    environ = os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", "PYTHONPATH": str(ROOT)}
    environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environ['PATH']}"  # another ninja would compile anew
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *argv]
    done = subprocess.run(launch, env=environ, capture_output=True, text=True, cwd=ROOT, check=False, timeout=1200)
    found = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("CPU ")]
    if not found:
        raise RuntimeError(f"{argv}: {done.stdout[-500:]} {done.stderr[-2000:]}")
    return float(found[0])


def ours(backend: str, folder: Path, number: int) -> list[str]:
    """Our ranks, as torchrun starts them."""
    flags = ["--backend.name", backend, "--run.stop_after_steps", "1", "--watch.wandb", "off"]
    flags += ["--watch.use", f"[{folder}/first.py:First]", "--run.dir", f"{folder}/{backend}-{number}"]
    return ["-m", "harness", "configs/digits.yaml", *flags]


def table(record: dict[str, Any]) -> str:
    """The record's rows."""
    rows = [f"| {name} | {found['ours']:.2f} | {found['by hand']:.2f} |" for name, found in record["cpu_s"].items()]
    return "\n".join(["| backend | widebatch | by hand |", "|---|---|---|", *rows]) + "\n"


def main() -> None:
    """Measure and write the record."""
    os.environ["TORCH_EXTENSIONS_DIR"] = str(build_cpu_ops())
    found: dict[str, dict[str, list[float]]] = {backend: {"ours": [], "by hand": []} for backend in BY_HAND}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "first.py").write_text(WATCHER)
        for backend, text in BY_HAND.items():
            (folder / f"{backend}.py").write_text(text)
        for number in range(ROUNDS + 1):
            for backend, values in found.items():
                taken = cpu_seconds(ours(backend, folder, number)), cpu_seconds([str(folder / f"{backend}.py")])
                print(backend, *(round(seconds, 2) for seconds in taken), flush=True)
                for what, seconds in zip(values, taken, strict=True):
                    values[what] += [seconds] if number else []
    medians = {b: {what: round(statistics.median(v), 3) for what, v in values.items()} for b, values in found.items()}
    record = {"command": "python -m tests.bench.start_backends", "machine": machine(), "rounds": ROUNDS, "cpu_s": medians}
    OUT.write_text(json.dumps(record, indent=1) + "\n")
    rewrite(MARKS, table(record))


if __name__ == "__main__":
    main()
