"""Journals for tests: of real runs, and made up line by line where a run would take too long."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.config.loader import decode
from harness.plan.plan import plan
from harness.plan.world import World
from harness.training.loop import train
from harness.watch.journal_writer import Journal

Line = dict[str, Any]


def digits(folder: Path, total: int, lr: float = 0.02, **sections: dict[str, Any]) -> Path:
    """Train a small net on digits at this batch and keep its journal in the run folder; returns the folder."""
    tree: dict[str, Any] = {
        "recipe": {"use": "digits", "width": 4},
        "batch": {"reference": 32, "total": total},
        "optim": {"lr": lr},
        "scaling": {"warmup_samples": 512},
        "schedule": {"samples": 3840, "shape": "cosine"},
        "eval": {"every_samples": 1280},
        "watch": {"wandb": "off", "every_steps": 5},
    }
    config = decode({name: tree.get(name, {}) | sections.get(name, {}) for name in {*tree, *sections}})
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder / "events.jsonl")
    for event in train(config, plan(config, World(1, device="cpu")), cpu=True, folder=folder):
        journal(event)
    journal.close()
    return folder


def start(samples: int = 0, step: int = 0, batch: int = 10, **plan_numbers: Any) -> Line:
    """A run begins, or continues."""
    numbers = {"global_batch": batch, "ratio": 1.0, "rule": "linear", "lr": 0.1, "world_size": 1, "total_samples": 1000}
    return {"event": "start", "step": step, "samples": samples, "plan": numbers | plan_numbers, "config": {}, "parameters": 7}


def steps(first: int, last: int, loss: float, batch: int = 10, every: int = 10) -> Iterator[Line]:
    """Steps first..last, with a window of `every` steps; the clock runs one second a window."""
    for step in range(first, last + 1):
        line = {"event": "step", "step": step, "samples": step * batch, "train/loss": loss, "train/lr": 0.1}
        yield line
        if step % every == 0:
            told = {"progress/train_s": (step - first + 1) / every, "throughput/data_wait_pct": 10.0}
            yield line | told | {"event": "window", "throughput/comm_wait_pct": 20.0, "batch/noise_scale_samples": 50.0}


def write(folder: Path, lines: list[Line]) -> Path:
    """A run folder with this journal; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
