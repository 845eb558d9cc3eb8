"""Losses of a lab's runs by their key, written as JSON after each run, so that a lab goes on where it was stopped."""

import json
import math
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any, final

import torch

from harness.config.loader import decode
from harness.plan.plan import plan
from harness.plan.world import World
from harness.telemetry.events import Ended
from harness.training.loop import train

Key = tuple[str, str, int, int, float]
"""Task, variant, k, seed, reference lr of a run."""
SEEDS = (0, 1, 2)


@final
@dataclass
class Record:
    """The runs done so far, of `path`; a run that died has no loss. `about` says what they are, `run` makes one."""

    path: Path
    about: Mapping[str, Any]
    names: tuple[str, ...]
    run: Callable[[str, str, int, int, float], float | None]
    losses: dict[Key, float | None] = field(default_factory=dict)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.path.exists():
            tree = json.loads(self.path.read_text())
            self.losses = {tuple(row[name] for name in self.names): row["loss"] for row in tree["rows"]}
            self.seconds = float(tree["seconds"])

    def loss(self, *key: *Key) -> float:
        """Of this run, which is made if it is not there. Infinite where it died."""
        if key not in self.losses:
            begin = time.monotonic()
            self.losses[key] = self.run(*key)
            self.seconds += time.monotonic() - begin
            print(*key, self.losses[key], flush=True)
            self.write()
        found = self.losses[key]
        return math.inf if found is None else found

    def write(self) -> None:
        """The record as JSON."""
        machine = f"{platform.machine()}, CPU, 1 thread, torch {torch.__version__}"
        tree = {**self.about, "machine": machine, "seconds": round(self.seconds, 1)}
        rows = [json.dumps(dict(zip((*self.names, "loss"), (*key, loss), strict=True))) for key, loss in self.losses.items()]
        body = ",\n ".join(rows)
        self.path.write_text(f'{json.dumps(tree, indent=1)[:-2]},\n "rows": [\n {body}\n ]\n}}\n')

    def tuned_lr(self, task: str, variant: str, start: float) -> float:
        """The best reference lr at k = 1 with two seeds, by factors of two: the search goes on while the best is at an end."""

        def value(power: int) -> float:
            return mean(self.loss(task, variant, 1, seed, start * 2.0**power) for seed in SEEDS[:2])

        low, high = -1, 1
        while True:
            best = min(range(low, high + 1), key=value)
            if low < best < high:
                return start * 2.0**best
            low, high = low - (best == low), high + (best == high)


def final_loss(tree: dict[str, Any]) -> float | None:
    """The last validation loss of a run file's run in this process; None where the guard stopped it or it is not finite."""
    config = decode(tree)
    *_, end = train(config, plan(config, World(1, device="cpu")), cpu=True)
    loss = end.metrics.get("eval/loss") if isinstance(end, Ended) and end.reason == "complete" else None
    return loss if loss is not None and math.isfinite(loss) else None


def spread(losses: list[float]) -> str:
    """Mean and standard deviation, or how many died."""
    died = sum(math.isinf(loss) for loss in losses)
    return f"{died} died" if died else f"{mean(losses):.3f} ± {stdev(losses):.3f}"
