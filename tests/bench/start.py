"""What it costs to get to the first step, in CPU seconds: by hand, by us, with W&B; and what stands above the ranks.

`python -m tests.bench.start` writes configs/results/start.json. Every round starts each of them once; the differences are medians
over the rounds, after one that is not counted. CPU seconds are those of the one process that is named, and not of those that it
starts. Python keeps its bytecode between the rounds, as it does by default; PYTHONDONTWRITEBYTECODE is taken away.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.peers.__main__ import machine
from tests.support.processes import ROOT

OUT = ROOT / "configs" / "results" / "start.json"
ROUNDS = 7
BY_HAND = """
import time
import torch
from harness.recipes.base import load_recipe
from harness.config.schema import RecipeConfig
recipe = load_recipe(RecipeConfig(use="digits"))
data, model = recipe.data("train"), recipe.model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
batch = data.take(torch.arange(32))
total, count = recipe.loss(model, batch)
(total / count).backward()
torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
optimizer.step()
print("CPU", time.process_time())
"""
WATCHER = """
import time
from harness.telemetry.events import Stepped
class First:
    told = False
    def __call__(self, event):
        if isinstance(event, Stepped) and not First.told:
            First.told = True
            print("CPU", time.process_time(), flush=True)
"""
PARENT = """
import resource, sys
from launch.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
used = resource.getrusage(resource.RUSAGE_SELF)
print("CPU", used.ru_utime + used.ru_stime, "torch" in sys.modules)
"""


def told(argv: list[str]) -> tuple[float, bool]:
    """(CPU seconds, whether torch was there) as a process prints them. Raises RuntimeError."""
    environ = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "", "NO_COLOR": "1", "PYTHONPATH": str(ROOT)}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, cwd=ROOT, check=False, timeout=300)
    for line in done.stdout.splitlines():
        if line.startswith("CPU "):
            _, seconds, *torch = line.split()
            return float(seconds), torch == ["True"]
    raise RuntimeError(f"{argv}: {done.stdout[-500:]} {done.stderr[-2000:]}")


def accelerate_parent() -> float:
    """CPU seconds of `accelerate launch` above two ranks that do nothing: all that it uses, less what they do."""
    code = "import resource, runpy, sys\nsys.argv = sys.argv[1:]\n"
    code += "try:\n runpy.run_module('accelerate.commands.launch', run_name='__main__')\nfinally:\n"
    code += " used = resource.getrusage(resource.RUSAGE_SELF)\n print('CPU', used.ru_utime + used.ru_stime, flush=True)\n"
    argv = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    with tempfile.NamedTemporaryFile("w", suffix=".py") as nothing:
        return told([sys.executable, "-c", code, "accelerate", *argv, "--main_process_port", "0", nothing.name])[0]


def main() -> None:
    """Measure and write the record."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "first.py").write_text(WATCHER)
        worker = [sys.executable, "-m", "harness", "configs/digits.yaml", "--run.stop_after_steps", "1"]
        worker += ["--watch.use", f"[{folder}/first.py:First]"]
        ranks = ["configs/digits.yaml", "--gpus", "0", "--procs", "2", "--run.stop_after_steps", "1", "--watch.wandb", "off"]
        number = iter(range(10**6))
        measures: dict[str, Callable[[], float]] = {
            "by hand": lambda: told([sys.executable, "-c", BY_HAND])[0],
            "widebatch": lambda: told([*worker, "--watch.wandb", "off", "--run.dir", f"{folder}/{next(number)}"])[0],
            "widebatch, W&B offline": lambda: told([*worker, "--watch.wandb", "offline", "--run.dir", f"{folder}/{next(number)}"])[
                0
            ],
            "widebatch launch, itself": lambda: told(
                [sys.executable, "-c", PARENT, "launch", *ranks, "--run.dir", f"{folder}/{next(number)}"]
            )[0],
            "widebatch --help": lambda: told([sys.executable, "-c", PARENT, "--help"])[0],
            "widebatch plan": lambda: told([sys.executable, "-c", PARENT, "plan", ranks[0], "--gpus", "8"])[0],
            "accelerate launch, itself": accelerate_parent,
        }
        found: dict[str, list[float]] = {what: [] for what in measures}
        for number_of_round in range(ROUNDS + 1):
            for what, measure in measures.items():
                seconds = measure()
                print(what, round(seconds, 2), flush=True)
                if number_of_round:
                    found[what].append(seconds)
    extra = [a - b for a, b in zip(found["widebatch"], found["by hand"], strict=True)]
    record: dict[str, Any] = {
        "command": "python -m tests.bench.start",
        "machine": machine(),
        "rounds": ROUNDS,
        "cpu_s": {what: round(statistics.median(values), 3) for what, values in found.items()},
        "extra_cpu_s": round(statistics.median(extra), 3),
        "extra_cpu_s_range": [round(min(extra), 3), round(max(extra), 3)],
    }
    OUT.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
