"""What a larger batch costs Adam under each rule: tasks x k x rules, three seeds, the reference lr tuned first.

`python -m tests.bench.adam_rules` takes 20 minutes of one core, writes configs/results/adam_rules.json after each run and goes on
from there; then the table goes into the README. Each run has the same samples; the loss is that of its last evaluation.

digits        a convnet on scikit-learn's digits, ten epochs
bytes_once    a byte language model that sees each row of its text once
bytes_epochs  the same on a text small enough to be seen many times
"""

import json
import math
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from harness.config.loader import decode
from harness.plan.plan import plan
from harness.plan.world import World
from harness.telemetry.events import Ended
from harness.training.loop import train
from tests.support.readmes import rewrite

OUT = Path(__file__).parents[2] / "configs" / "results" / "adam_rules.json"
RATIOS, SEEDS, REFERENCE = (4, 16, 64), (0, 1, 2), 8
LM = {"use": "bytes_lm", "width": 32, "depth": 1, "heads": 2, "context": 32}
TASKS: dict[str, tuple[dict[str, Any], int, float]] = {
    "digits": ({"use": "digits"}, 14_370, 2e-3),
    "bytes_once": (LM | {"max_bytes": 500_000}, 12_000, 4e-3),
    "bytes_epochs": (LM | {"max_bytes": 30_000}, 12_000, 4e-3),
}
"""(recipe, samples, the lr at which the search begins) of each."""
RULES: dict[str, dict[str, str]] = {
    "linear": {"rule": "linear"},
    "sqrt": {"rule": "sqrt"},
    "sqrt, wd by timescale": {"rule": "sqrt", "weight_decay": "timescale"},
    "sqrt, beta2": {"rule": "sqrt", "betas": "half_life"},
    "sqrt, beta2, wd by timescale": {"rule": "sqrt", "betas": "half_life", "weight_decay": "timescale"},
    "sqrt, beta2, eps": {"rule": "adam", "weight_decay": "keep"},
    "sqrt, beta2, eps, wd by timescale": {"rule": "adam"},
    "sqrt, both betas, eps": {"rule": "adam", "betas": "half_life_both", "weight_decay": "keep"},
}
MARKS = ("<!-- adam rules -->", "<!-- end of adam rules -->")
Key = tuple[str, str, int, int, float]
"""Task, rule, k, seed, reference lr of a run."""


@dataclass
class Record:
    """The runs done so far; a run that died has no loss."""

    losses: dict[Key, float | None] = field(default_factory=dict)
    seconds: float = 0.0

    def loss(self, task: str, rule: str, k: int, seed: int, lr: float) -> float:
        """Of this run, which is made if it is not there. Infinite where it died."""
        key = (task, rule, k, seed, lr)
        if key not in self.losses:
            begin = time.monotonic()
            self.losses[key] = final_loss(*key)
            self.seconds += time.monotonic() - begin
            print(*key, self.losses[key], flush=True)
            self.write()
        found = self.losses[key]
        return math.inf if found is None else found

    def write(self) -> None:
        """The record as JSON."""
        names = ("task", "rule", "k", "seed", "reference_lr", "loss")
        tree = {
            "command": "python -m tests.bench.adam_rules",
            "machine": f"{platform.machine()}, CPU, 1 thread, torch {torch.__version__}",
            "seconds": round(self.seconds, 1),
            "reference_batch": REFERENCE,
            "tasks": {name: {"recipe": recipe, "samples": samples} for name, (recipe, samples, _) in TASKS.items()},
            "rules": RULES,
        }
        rows = ",\n ".join(json.dumps(dict(zip(names, (*key, loss), strict=True))) for key, loss in self.losses.items())
        OUT.write_text(f'{json.dumps(tree, indent=1)[:-2]},\n "rows": [\n {rows}\n ]\n}}\n')


def read() -> Record:
    """What was done before."""
    if not OUT.exists():
        return Record()
    tree = json.loads(OUT.read_text())
    return Record(
        {(r["task"], r["rule"], r["k"], r["seed"], r["reference_lr"]): r["loss"] for r in tree["rows"]}, float(tree["seconds"])
    )


def final_loss(task: str, rule: str, k: int, seed: int, lr: float) -> float | None:
    """The validation loss at the end of a run; None where the guard stopped it or it is not finite."""
    recipe, samples, _ = TASKS[task]
    config = decode(
        {
            "recipe": recipe,
            "batch": {"reference": REFERENCE, "total": REFERENCE * k},
            "optim": {"name": "adamw", "lr": lr, "betas": [0.9, 0.99], "weight_decay": 0.1, "clip": 1.0},
            "scaling": RULES[rule] | {"warmup_fraction": 0.1},
            "schedule": {"samples": samples, "shape": "cosine", "final_fraction": 0.1},
            "eval": {"every_samples": samples},
            "watch": {"wandb": "off", "every_steps": 1000, "noise_scale": False},
            "run": {"seed": seed},
        }
    )
    *_, end = train(config, plan(config, World(1, device="cpu")), cpu=True)
    loss = end.metrics.get("eval/loss") if isinstance(end, Ended) and end.reason == "complete" else None
    return loss if loss is not None and math.isfinite(loss) else None


def tuned_lr(record: Record, task: str) -> float:
    """The best reference lr at k = 1 with two seeds, by factors of two: the search goes on while the best is at an end."""
    start = TASKS[task][2]

    def value(power: int) -> float:
        return mean(record.loss(task, "sqrt", 1, seed, start * 2.0**power) for seed in SEEDS[:2])

    low, high = -1, 1
    while True:
        best = min(range(low, high + 1), key=value)
        if low < best < high:
            return start * 2.0**best
        low, high = low - (best == low), high + (best == high)


def cells(record: Record, task: str, lr: float) -> Iterator[tuple[str, int, list[float]]]:
    """(rule, k, the losses of all seeds) of a task, the smallest k last, which is the same under every rule."""
    for k in RATIOS:
        for rule in RULES:
            yield rule, k, [record.loss(task, rule, k, seed, lr) for seed in SEEDS]
    yield "k = 1", 1, [record.loss(task, "sqrt", 1, seed, lr) for seed in SEEDS]


def table(record: Record) -> str:
    """Mean and standard deviation of the loss by rule, its mean excess over the best rule of each column, and its mean place."""
    columns: dict[tuple[str, int], dict[str, list[float]]] = {}
    rates = {task: tuned_lr(record, task) for task in TASKS}
    for task in TASKS:
        for rule, k, losses in cells(record, task, rates[task]):
            columns.setdefault((task, k), {})[rule] = losses
    shown = [column for column in columns if column[1] > 1]
    body = []
    for rule in RULES:
        means = [{name: mean(losses) for name, losses in columns[c].items()} for c in shown]
        excess = mean(m[rule] - min(m.values()) for m in means)
        place = mean(1 + sum(other < m[rule] for other in m.values()) for m in means)
        body.append([rule, *(_text(columns[c][rule]) for c in shown), f"{excess:.3f}", f"{place:.1f}"])
    head = ["rule", *(f"{task}, k = {k}" for task, k in shown), "mean excess", "mean place"]
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)]
    ones = [f"{task} {_text(columns[task, 1]['k = 1'])} at lr {rates[task]:g}" for task in TASKS]
    return "\n".join([*lines, "", f"At k = 1: {', '.join(ones)}.", ""])


def _text(losses: list[float]) -> str:
    died = sum(math.isinf(loss) for loss in losses)
    return f"{died} died" if died else f"{mean(losses):.3f} ± {stdev(losses):.3f}"


def main() -> None:
    """Run all that is not done, then put the table into the README that has the marks."""
    torch.set_num_threads(1)
    rewrite(MARKS, table(read()))


if __name__ == "__main__":
    main()
