"""When to raise the batch: early, late, or not at all, at equal samples, with AdamW; three seeds, the reference lr tuned.

`python -m tests.bench.growth` takes three minutes of one core, writes configs/results/growth.json after each run and goes on from
there; then the table goes into the README. Tasks, batch and samples are those of tests.bench.adam_rules. Three schedules take
equally many optimizer steps: twice the batch throughout, four times from a third on, and four times up to two thirds.
"""

from collections.abc import Iterator
from typing import Any

import torch

from harness.config.loader import decode
from harness.plan.plan import plan
from harness.plan.world import World
from tests.bench import adam_rules
from tests.bench.adam_rules import REFERENCE
from tests.bench.lab_record import SEEDS, Record, final_loss, spread
from tests.support.processes import ROOT
from tests.support.readmes import rewrite

OUT = ROOT / "configs" / "results" / "growth.json"
TASKS = ("bytes_once", "regression")
FOUR = 4 * REFERENCE
SCHEDULES: dict[str, tuple[list[tuple[float, int]], str]] = {
    f"{REFERENCE}": ([(0, REFERENCE)], "rule"),
    f"{REFERENCE}, {FOUR} from 2/3 on": ([(0, REFERENCE), (2 / 3, FOUR)], "rule"),
    f"{REFERENCE}, {FOUR} from 1/3 on": ([(0, REFERENCE), (1 / 3, FOUR)], "rule"),
    f"{REFERENCE}, {FOUR} from 1/3 on, lr kept": ([(0, REFERENCE), (1 / 3, FOUR)], "keep"),
    f"{2 * REFERENCE}": ([(0, 2 * REFERENCE)], "rule"),
    f"{FOUR}, {REFERENCE} from 2/3 on": ([(0, FOUR), (2 / 3, REFERENCE)], "rule"),
    f"{REFERENCE}, {FOUR} from 1/10 on": ([(0, REFERENCE), (1 / 10, FOUR)], "rule"),
    f"{FOUR}": ([(0, FOUR)], "rule"),
}
"""(the share of the samples from which each batch is used, batch.stage_lr) of each."""
MARKS = ("<!-- growth -->", "<!-- end of growth -->")


def run_file(task: str, schedule: str, seed: int, lr: float) -> dict[str, Any]:
    """A run of a task under a schedule of batches."""
    recipe, samples, _ = adam_rules.TASKS[task]
    shares, stage_lr = SCHEDULES[schedule]
    steps = [[round(share * samples), batch] for share, batch in shares]
    tree = adam_rules.run_file(recipe, samples, 1, seed, lr)
    return tree | {"batch": {"reference": REFERENCE, "steps": steps, "stage_lr": stage_lr}}


def loss_of(task: str, schedule: str, k: int, seed: int, lr: float) -> float | None:
    """The validation loss at the end of a run; `k` is 1, as the reference batch is the same."""
    return final_loss(run_file(task, schedule, seed, lr))


def read() -> Record:
    """What was done before."""
    about = {"command": "python -m tests.bench.growth", "reference_batch": REFERENCE, "schedules": SCHEDULES}
    return Record(OUT, about, ("task", "schedule", "k", "seed", "reference_lr"), loss_of)


def steps_of(task: str, schedule: str) -> int:
    """Optimizer steps of a run."""
    return plan(decode(run_file(task, schedule, 0, 1e-3)), World(1, device="cpu")).total_steps


def rows(record: Record) -> Iterator[list[str]]:
    """A row of the table for each schedule."""
    known = adam_rules.read()
    rates = {task: known.tuned_lr(task, "sqrt", adam_rules.TASKS[task][2]) for task in TASKS}
    for schedule in SCHEDULES:
        row = [schedule]
        for task in TASKS:
            losses = [record.loss(task, schedule, 1, seed, rates[task]) for seed in SEEDS]
            row += [f"{steps_of(task, schedule):,}", spread(losses)]
        yield row


def table(record: Record) -> str:
    """Steps and validation loss by schedule and task."""
    head = ["batch", *(text for task in TASKS for text in (f"{task}, steps", "loss"))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows(record))) + "\n"


def main() -> None:
    """Run all that is not done, then put the table into the README that has the marks."""
    torch.set_num_threads(1)
    rewrite(MARKS, table(read()))


if __name__ == "__main__":
    main()
