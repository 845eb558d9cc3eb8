"""Muon, and AdamW whose second moment is of chunks, against AdamW on a small byte language model at k = 1, 4, 16, 64.

Three seeds; lr tuned at k = 1, where a step is one chunk, so that chunks change nothing.

`python -m tests.bench.optimizers` writes configs/results/optimizers.json after each run and goes on from there; then the table goes
into the README. Task, batch and samples are those of `bytes_once` in tests.bench.adam_rules, whose AdamW runs are in the table.
"""

from typing import Any

import torch

from tests.bench import adam_rules
from tests.bench.lab_record import SEEDS, Record, final_loss, spread
from tests.support.processes import ROOT
from tests.support.readmes import rewrite

OUT = ROOT / "configs" / "results" / "optimizers.json"
TASK = "bytes_once"
CHUNKS = {"name": "adamw", "second_moment": "chunks"}
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "adamw, none": ({"name": "adamw"}, {"rule": "none"}),
    "muon, none": ({"name": "muon"}, {"rule": "none"}),
    "muon, sqrt": ({"name": "muon"}, {"rule": "sqrt"}),
    "muon, sqrt, wd by timescale": ({"name": "muon"}, {"rule": "sqrt", "weight_decay": "timescale"}),
    "muon, linear": ({"name": "muon"}, {"rule": "linear"}),
    "chunks, none": (CHUNKS, {"rule": "none"}),
    "chunks, sqrt, wd by timescale": (CHUNKS, {"rule": "sqrt", "weight_decay": "timescale"}),
    "chunks, linear, both betas": (CHUNKS, {"rule": "linear", "betas": "half_life_both"}),
}
"""(settings of optim, of scaling) of each; those of one optimizer are tuned together, at k = 1."""
ADAMW = ("sqrt, wd by timescale", "sqrt, beta2, eps, wd by timescale")
"""The rows of AdamW, from the record of adam_rules."""
MARKS = ("<!-- optimizers -->", "<!-- end of optimizers -->")


def loss_of(task: str, variant: str, k: int, seed: int, lr: float) -> float | None:
    """The validation loss at the end of a run."""
    recipe, samples, _ = adam_rules.TASKS[task]
    tree, (optim, scaling) = adam_rules.run_file(recipe, samples, k, seed, lr), VARIANTS[variant]
    if optim == CHUNKS:
        tree["batch"] |= {"micro": adam_rules.REFERENCE}
    return final_loss(tree | {"optim": tree["optim"] | optim, "scaling": tree["scaling"] | scaling})


def read() -> Record:
    """What was done before."""
    about = {
        "command": "python -m tests.bench.optimizers",
        "task": TASK,
        "reference_batch": adam_rules.REFERENCE,
        "variants": {name: {"optim": optim, "scaling": scaling} for name, (optim, scaling) in VARIANTS.items()},
    }
    return Record(OUT, about, ("task", "variant", "k", "seed", "reference_lr"), loss_of)


def table(record: Record) -> str:
    """Mean and standard deviation of the loss by variant and k, and the lr that was tuned."""
    known, start = adam_rules.read(), adam_rules.TASKS[TASK][2]
    rows = []
    tuned = known.tuned_lr(TASK, "sqrt", start)
    for rule in ADAMW:
        losses = {
            k: [known.loss(TASK, rule if k > 1 else "sqrt", k, seed, tuned) for seed in SEEDS] for k in (1, *adam_rules.RATIOS)
        }
        rows.append([f"adamw, {rule}", f"{tuned:g}", *map(spread, losses.values())])
    for variant, (optim, _) in VARIANTS.items():
        ones, one = (known, "sqrt") if optim["name"] == "adamw" else (record, "muon, none")
        tuned = ones.tuned_lr(TASK, one, start)
        losses = {k: [record.loss(TASK, variant, k, seed, tuned) for seed in SEEDS] for k in adam_rules.RATIOS}
        losses = {1: [ones.loss(TASK, one, 1, seed, tuned) for seed in SEEDS]} | losses
        rows.append([variant, f"{tuned:g}", *map(spread, losses.values())])
    head = ["optimizer, rule", "lr at k = 1", *(f"k = {k}" for k in (1, *adam_rules.RATIOS))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)) + "\n"


def main() -> None:
    """Run all that is not done, then put the table into the README that has the marks."""
    torch.set_num_threads(1)
    rewrite(MARKS, table(read()))


if __name__ == "__main__":
    main()
