"""What a larger batch costs Adam under each rule: tasks x k x rules, three seeds, the reference lr tuned first.

`python -m tests.bench.adam_rules` takes 25 minutes of one core, writes configs/results/adam_rules.json after each run and goes on
from there; then the table goes into the README. Each run has the same samples; the loss is that of its last evaluation.

digits        a convnet on scikit-learn's digits, ten epochs
bytes_once    a byte language model that sees each row of its text once
bytes_epochs  the same on a text small enough to be seen many times
regression    the lower half of a digit from its upper half, by squared error, 20 epochs
"""

from collections.abc import Iterator
from statistics import mean
from typing import Any

import torch

from tests.bench.lab_record import SEEDS, Record, final_loss, spread
from tests.support.processes import ROOT
from tests.support.readmes import rewrite

OUT = ROOT / "configs" / "results" / "adam_rules.json"
RATIOS, REFERENCE = (4, 16, 64), 8
LM = {"use": "bytes_lm", "width": 32, "depth": 1, "heads": 2, "context": 32}
TASKS: dict[str, tuple[dict[str, Any], int, float]] = {
    "digits": ({"use": "digits"}, 14_370, 2e-3),
    "bytes_once": (LM | {"max_bytes": 500_000}, 12_000, 4e-3),
    "bytes_epochs": (LM | {"max_bytes": 30_000}, 12_000, 4e-3),
    "regression": ({"use": "tests.bench.digit_halves:DigitHalves"}, 28_740, 4e-3),
}
"""(recipe, samples, the lr at which the search begins) of each."""
RULES: dict[str, dict[str, str]] = {
    "none (lr kept)": {"rule": "none"},
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


def run_file(recipe: dict[str, Any], samples: int, k: int, seed: int, lr: float) -> dict[str, Any]:
    """A run of a task with AdamW at k times the reference batch."""
    return {
        "recipe": recipe,
        "batch": {"reference": REFERENCE, "total": REFERENCE * k},
        "optim": {"name": "adamw", "lr": lr, "betas": [0.9, 0.99], "weight_decay": 0.1, "clip": 1.0},
        "scaling": {"warmup_fraction": 0.1},
        "schedule": {"samples": samples, "shape": "cosine", "final_fraction": 0.1},
        "eval": {"every_samples": samples},
        "watch": {"wandb": "off", "every_steps": 1000, "noise_scale": False},
        "run": {"seed": seed},
    }


def loss_of(task: str, rule: str, k: int, seed: int, lr: float) -> float | None:
    """The validation loss at the end of a run."""
    recipe, samples, _ = TASKS[task]
    tree = run_file(recipe, samples, k, seed, lr)
    return final_loss(tree | {"scaling": tree["scaling"] | RULES[rule]})


def read() -> Record:
    """What was done before."""
    about = {
        "command": "python -m tests.bench.adam_rules",
        "reference_batch": REFERENCE,
        "tasks": {name: {"recipe": recipe, "samples": samples} for name, (recipe, samples, _) in TASKS.items()},
        "rules": RULES,
    }
    return Record(OUT, about, ("task", "rule", "k", "seed", "reference_lr"), loss_of)


def cells(record: Record, task: str, lr: float) -> Iterator[tuple[str, int, list[float]]]:
    """(rule, k, the losses of all seeds) of a task, the smallest k last, which is the same under every rule."""
    for k in RATIOS:
        for rule in RULES:
            yield rule, k, [record.loss(task, rule, k, seed, lr) for seed in SEEDS]
    yield "k = 1", 1, [record.loss(task, "sqrt", 1, seed, lr) for seed in SEEDS]


def table(record: Record) -> str:
    """Mean and standard deviation of the loss by rule, its mean excess over the best rule of each column, and its mean place."""
    columns: dict[tuple[str, int], dict[str, list[float]]] = {}
    rates = {task: record.tuned_lr(task, "sqrt", TASKS[task][2]) for task in TASKS}
    for task in TASKS:
        for rule, k, losses in cells(record, task, rates[task]):
            columns.setdefault((task, k), {})[rule] = losses
    shown = [column for column in columns if column[1] > 1]
    body = []
    for rule in RULES:
        means = [{name: mean(losses) for name, losses in columns[c].items()} for c in shown]
        excess = mean(m[rule] - min(m.values()) for m in means)
        place = mean(1 + sum(other < m[rule] for other in m.values()) for m in means)
        body.append([rule, *(spread(columns[c][rule]) for c in shown), f"{excess:.3f}", f"{place:.1f}"])
    head = ["rule", *(f"{task}, k = {k}" for task, k in shown), "mean excess", "mean place"]
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)]
    ones = [f"{task} {spread(columns[task, 1]['k = 1'])} at lr {rates[task]:g}" for task in TASKS]
    return "\n".join([*lines, "", f"At k = 1: {', '.join(ones)}.", ""])


def main() -> None:
    """Run all that is not done, then put the table into the README that has the marks."""
    torch.set_num_threads(1)
    rewrite(MARKS, table(read()))


if __name__ == "__main__":
    main()
