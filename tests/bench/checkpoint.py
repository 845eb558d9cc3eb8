"""What a checkpoint costs training: 200M parameters with Adam, 2.4 GB of state, against a plain copy of the same bytes.

`python -m tests.bench.checkpoint` prints a line per round and writes configs/results/checkpoint.json: how long training stands,
what `memcpy` of the same bytes takes in the same process, and how long steps take while the writer is at work and while it is not.
A round interleaves them, so that other load on the machine falls on all alike. Where two cores share what one of them needs, any
process beside training makes it slower: so steps beside one that only counts are measured too.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.checkpoint.reader import newest
from harness.checkpoint.staging import Staging
from harness.checkpoint.train_state import State
from harness.checkpoint.writer_process import Task
from harness.config.loader import decode
from harness.data.feed import Micro, Table
from harness.data.sample_order import Chunk
from harness.engine.factory import open_engine
from harness.plan.plan import plan
from harness.plan.world import World
from harness.recipes.base import Recipe, Split, Sum, load_recipe
from tests.support.processes import ROOT

OUT = ROOT / "configs" / "results" / "checkpoint.json"
DEPTH = 12


@dataclass(frozen=True)
class Wide(Recipe):
    """Twelve square layers."""

    width: int = 4096

    def model(self) -> nn.Module:
        """[n, width] -> [n, width]."""
        return nn.Sequential(*(nn.Linear(self.width, self.width, bias=False) for _ in range(DEPTH)))

    def data(self, split: Split) -> Table:
        """Noise."""
        return Table({"x": torch.randn(64, self.width)})

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Sum:
        """Mean square of what comes out."""
        return model(batch["x"]).square().mean(1).sum(), len(batch["x"])


def timed(action: Any) -> float:
    """Seconds of a call."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


@contextmanager
def busy_core() -> Iterator[None]:
    """Another process counts meanwhile, and touches no memory."""
    code = "print(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as counting:
        assert counting.stdout is not None
        counting.stdout.readline()
        try:
            yield
        finally:
            counting.kill()


def measure(width: int, rounds: int, where: str) -> dict[str, Any]:
    """All rounds."""
    tree = {
        "recipe": {"use": f"{__file__}:Wide", "width": width},
        "batch": {"reference": 64, "total": 64},
        "optim": {"name": "adamw", "lr": 1e-5},
        "schedule": {"samples": 6400},
        "watch": {"noise_scale": False, "every_steps": 1},
    }
    c = decode(tree)
    recipe = load_recipe(c.recipe)
    engine = open_engine(c, plan(c, World(1, device="cpu"), 64), recipe, cpu=True)
    micro = Micro({"x": torch.randn(64, width)}, Chunk(0, 64))

    def step() -> None:
        engine.step([micro], 1e-5, False)
        engine.read()

    step()
    pieces = engine.pieces()
    size = sum(p.data.numel() * p.data.element_size() for p in pieces)
    staging = Staging(engine.device)
    staging.prepare(pieces)
    plain = [torch.zeros_like(p.data) for p in pieces]
    sources = [p.data for p in pieces]
    torch._foreach_copy_(plain, sources)
    step()
    names = ("memcpy_s", "stop_s", "step_idle_s", "step_counting_s", "step_writing_s", "write_s")
    out: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        out["memcpy_s"].append(timed(lambda: torch._foreach_copy_(plain, sources)))
        task = Task(where, number + 1, f"bench-{number}", 0, 1, _state(number + 1), keep=1, keep_best=0)
        out["stop_s"].append(timed(lambda task=task: staging.take(engine.pieces(), task)))
        out["memcpy_s"].append(timed(lambda: torch._foreach_copy_(plain, sources)))
        writing, line = [], None
        while line is None or "path" not in line:
            writing.append(timed(step))
            line = staging.told(0.0) or line
            if line is not None and "problem" in line:
                raise SystemExit(line["problem"])
        writing = writing[:-1] or writing  # the last one ran partly alone
        out["write_s"].append(line["write_s"])
        out["step_writing_s"].append(statistics.median(writing))
        out["step_idle_s"].append(statistics.median(timed(step) for _ in writing))
        with busy_core():
            out["step_counting_s"].append(statistics.median(timed(step) for _ in writing))
        print({name: round(values[-1], 3) for name, values in out.items()} | {"steps": len(writing)}, flush=True)
    staging.close(busy=False)
    found, complaints = newest(where)
    assert found is not None
    assert not complaints
    return _summary(out, size, width)


def _state(samples: int) -> str:
    return json.dumps({"state": State(samples=samples).to_json(), "about": {"score": None, "well": True}})


def _summary(out: dict[str, list[float]], size: int, width: int) -> dict[str, Any]:
    """Medians and ratios."""
    middle = {name: round(statistics.median(values), 4) for name, values in out.items()}
    stops, idle = out["stop_s"], out["step_idle_s"]
    slows = [a / b for a, b in zip(out["step_writing_s"], idle, strict=True)]
    counts = [a / b for a, b in zip(out["step_counting_s"], idle, strict=True)]
    pairs = [stop / statistics.mean(out["memcpy_s"][2 * i : 2 * i + 2]) for i, stop in enumerate(stops)]
    return {
        "command": "python -m tests.bench.checkpoint",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"load {os.getloadavg()[0]:.1f}",
        "parameters": DEPTH * width**2,
        "bytes": size,
        "rounds": len(stops),
        **middle,
        "first_stop_s": round(stops[0], 4),
        "stop_over_memcpy": round(statistics.median(pairs), 3),
        "stop_over_memcpy_range": [round(min(pairs), 3), round(max(pairs), 3)],
        "step_writing_over_idle": round(statistics.median(slows), 3),
        "step_writing_over_idle_range": [round(min(slows), 3), round(max(slows), 3)],
        "step_counting_over_idle": round(statistics.median(counts), 3),
        "step_counting_over_idle_range": [round(min(counts), 3), round(max(counts), 3)],
        "verified": True,
    }


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        found = measure(args.width, args.rounds, folder)
    args.out.write_text(json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
