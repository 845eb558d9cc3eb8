"""What share of a run its steps wait for data, in one thread: ours as the journal tells it, and a loop's that indexes by hand.

`python -m tests.bench.data` writes configs/results/data_wait.json. Each recipe is trained as its run file says, for so many
steps at most; medians of the rounds. Our share is of all windows together, by their times. By hand a shuffled slice of each column
is taken.
"""

import json
import statistics
import time
from typing import Any

import torch

from harness.config.loader import load
from harness.config.schema import Config
from harness.data.feed import Table
from harness.plan.plan import plan
from harness.plan.world import World
from harness.recipes.base import load_recipe
from harness.telemetry.events import Windowed
from harness.training.loop import train
from tests.bench.peers.__main__ import machine
from tests.support.processes import ROOT

OUT = ROOT / "configs" / "results" / "data_wait.json"
STEPS = {"digits": 1348, "fashion_mlp": 3000, "fashion_mnist": 300, "bytes_lm": 150}
"""Steps of each recipe. fashion_mlp, with a millisecond for a step, is here to show where the share is largest."""
ROUNDS = 3


def ours(config: Config) -> tuple[float, float]:
    """(percent of the time that steps waited for data, milliseconds of a step)."""
    told = [e for e in train(config, plan(config, World(1, device="cpu")), cpu=True) if isinstance(e, Windowed)]
    waited = before = 0.0
    for window in told:
        now = window.metrics["progress/train_s"] or 0.0
        waited += (now - before) * (window.metrics["throughput/data_wait_pct"] or 0.0)
        before = now
    return waited / before, 1e3 * before / told[-1].step


def by_hand(config: Config, steps: int) -> float:
    """Percent of the time that a loop takes to index its data."""
    recipe = load_recipe(config.recipe)
    data, model = recipe.data("train"), recipe.model()
    assert isinstance(data, Table)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    batch = config.batch.reference
    fetching = 0.0
    begin = time.perf_counter()
    for step in range(steps):
        start = time.perf_counter()
        if step * batch // len(data) != (step - 1) * batch // len(data):
            order = torch.randperm(len(data))
        first = step * batch % len(data)
        taken = {name: column[order[first : first + batch]] for name, column in data.columns.items()}
        fetching += time.perf_counter() - start
        total, count = recipe.loss(model, taken | {"key": torch.zeros(len(taken[next(iter(taken))]), dtype=torch.int64)})
        (total / count).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return 100 * fetching / (time.perf_counter() - begin)


def main() -> None:
    """Measure and write the record."""
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name, steps in STEPS.items():
        config = load(ROOT / "configs" / f"{name}.yaml", {"run.stop_after_steps": str(steps), "watch.wandb": "off"})
        rounds = [(*ours(config), by_hand(config, steps)) for _ in range(ROUNDS)]
        wait, step_ms, hand = (round(statistics.median(values), 3) for values in zip(*rounds, strict=True))
        rows.append({"recipe": name, "steps": steps, "step_ms": step_ms, "data_wait_pct": wait, "by_hand_pct": hand})
        print(rows[-1], flush=True)
    record = {"command": "python -m tests.bench.data", "machine": machine(), "rounds": ROUNDS, "rows": rows}
    OUT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
