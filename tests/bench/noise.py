"""The measured noise scale of digits at three batches: it belongs to the weights, so at equal samples the batches must agree.

`python -m tests.bench.noise` trains with the linear rule, 3 seeds each, and writes configs/results/noise.json.
"""

import json
import statistics

import torch

from harness.config.loader import load
from harness.plan.plan import plan
from harness.plan.world import World
from harness.telemetry.events import Windowed
from harness.training.loop import train
from tests.support.processes import ROOT

OUT = ROOT / "configs" / "results" / "noise.json"
BATCHES, SEEDS, EPOCHS = (64, 128, 256), (0, 1, 2), (2, 4, 6, 8)


def curve(batch: int, seed: int) -> list[float | None]:
    """The noise scale in samples after each of EPOCHS."""
    flags = {
        "batch.total": str(batch), "batch.micro": "16", "optim.lr": "0.005", "scaling.warmup_epochs": "0",
        "schedule.shape": "constant", "schedule.epochs": str(max(EPOCHS)), "run.seed": str(seed), "watch.every_steps": "5",
    }  # fmt: skip
    config = load(ROOT / "configs" / "digits.yaml", flags)
    events = train(config, plan(config, World(1, device="cpu")), cpu=True)
    told = [(e.metrics["progress/epoch"] or 0.0, e.metrics["batch/noise_scale_samples"]) for e in events if isinstance(e, Windowed)]
    return [min(told, key=lambda point: abs(point[0] - epoch))[1] for epoch in EPOCHS]


def main() -> None:
    """Run all and write the record."""
    torch.set_num_threads(1)
    rows = []
    for batch in BATCHES:
        curves = [curve(batch, seed) for seed in SEEDS]
        for epoch, values in zip(EPOCHS, zip(*curves, strict=True), strict=True):
            known = [v for v in values if v is not None]
            mean, deviation = statistics.mean(known), statistics.stdev(known)
            rows.append({"batch": batch, "epoch": epoch, "noise_scale": round(mean, 1), "deviation": round(deviation, 1)})
            print(rows[-1])
    OUT.write_text(json.dumps({"command": "python -m tests.bench.noise", "seeds": len(SEEDS), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
