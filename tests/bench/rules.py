"""Digits at k = 1, 4, 16 with rules none and linear, three seeds: what the rule buys. Writes configs/results/digits_rules.json.

Run by `make bench-rules`. Each run is configs/digits.yaml with another batch, rule and seed, to the same number of samples.
"""

import json
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from harness.config.loader import load
from harness.plan.plan import plan
from harness.plan.world import World
from harness.telemetry.events import Ended
from harness.training.loop import train

ROOT = Path(__file__).parents[2]
OUT = ROOT / "configs" / "results" / "digits_rules.json"
RATIOS, RULES, SEEDS = (1, 4, 16), ("none", "linear"), (0, 1, 2)


def final_accuracy(ratio: int, rule: str, seed: int) -> float:
    """Validation accuracy in percent after the last step."""
    reference = 32
    flags = {"batch.total": str(ratio * reference), "scaling.rule": rule, "run.seed": str(seed), "eval.every_epochs": "30"}
    config = load(ROOT / "configs" / "digits.yaml", flags)
    *_, end = train(config, plan(config, World(1, device="cpu")), cpu=True)
    if not isinstance(end, Ended) or end.reason != "complete":
        return float("nan")
    accuracy = end.metrics["eval/accuracy_pct"]
    return float("nan") if accuracy is None else accuracy


def main(ratios: Sequence[int] = RATIOS, seeds: Sequence[int] = SEEDS) -> None:
    """Run all and write the record."""
    torch.set_num_threads(1)
    begin, rows = time.monotonic(), []
    for rule in RULES:
        for ratio in ratios:
            accuracies = [final_accuracy(ratio, rule, seed) for seed in seeds]
            spread = statistics.stdev(accuracies)
            rows.append({"rule": rule, "k": ratio, "batch": 32 * ratio, "accuracy_pct": accuracies})
            print(f"{rule:<8} k {ratio:>3}  accuracy {statistics.mean(accuracies):.2f} +- {spread:.2f} %  {accuracies}", flush=True)
    record = {
        "command": "make bench-rules",
        "run_file": "configs/digits.yaml",
        "machine": f"{platform.machine()}, CPU, 1 thread, torch {torch.__version__}",
        "seconds": round(time.monotonic() - begin, 1),
        "rows": rows,
    }
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
