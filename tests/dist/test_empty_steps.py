"""A step in which the loss counts nothing on any rank moves nothing and is not a fault, and neither is a NaN in a window's mean."""

import json
import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from harness.checkpoint.train_state import State
from harness.config.errors import UserError
from harness.config.loader import decode
from harness.data.feed import Table
from harness.plan.plan import plan
from harness.plan.world import World
from harness.recipes.base import Recipe, Split, Sum
from harness.telemetry.events import Ended, Event, Noticed, Stepped, Windowed
from harness.training.ending import check_counted
from harness.training.loop import train
from tests.support.processes import run_ranks

ROWS, TARGETS = 64, 12
"""Samples, and those of them that have a target: the first ones."""


@dataclass(frozen=True)
class Sparse(Recipe):
    """Three classes, BatchNorm; most samples have no target. `mean` makes the loss NaN where there is none, as torch's mean is."""

    host: bool = False
    mean: bool = False
    poison: int = -1

    def model(self) -> nn.Module:
        """[n, 4] -> [n, 3]."""
        return nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))

    def data(self, split: Split) -> Table:
        """Columns x, y; sample `poison` is not a number."""
        g = torch.Generator().manual_seed(int(split == "train"))
        x = torch.randn(ROWS, 4, generator=g)
        y = (x.sum(1) > 0).long()
        if split == "train":
            y[TARGETS:] = -100
            if self.poison >= 0:
                x[self.poison] = math.nan
        return Table({"x": x, "y": y})

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Sum:
        """Over the samples that have a target."""
        count = (batch["y"] != -100).sum()
        total = cross_entropy(model(batch["x"]), batch["y"], ignore_index=-100, reduction="sum")
        if self.mean and not count:
            total = total * math.nan
        return total, int(count) if self.host else count


class Uncounted(Sparse):
    """It has lost the count."""

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Sum:
        """Of no items."""
        return super().loss(model, batch)[0] * 0, 0


def tree(over: Mapping[str, Any] | None = None, **knobs: Any) -> dict[str, Any]:
    """Batches of four: most of them have no target."""
    base: dict[str, Any] = {
        "recipe": {"use": f"{__file__}:Sparse", **knobs},
        "batch": {"reference": 4, "total": 4},
        "optim": {"name": "adamw", "lr": 0.05, "weight_decay": 0.1, "ema": 0.9},
        "scaling": {"rule": "none"},
        "schedule": {"samples": 4 * ROWS, "shape": "linear"},
        "guard": {"budget": 0},
        "watch": {"wandb": "off", "every_steps": 1},
    }
    return base | dict(over or {})


def run(tree: dict[str, Any], world: int = 1) -> list[Event]:
    """All events of a run in this process."""
    c = decode(tree)
    return list(train(c, plan(c, World(world, 1, "cpu", 1)), cpu=True))


def steps(events: list[Event]) -> list[dict[str, Any]]:
    """The metrics of each step."""
    return [e.metrics for e in events if isinstance(e, Stepped)]


@pytest.mark.parametrize(("world", "knobs"), [(1, {}), (1, {"host": True}), (1, {"mean": True}), (2, {}), (2, {"host": True})])
def test_a_step_that_counts_nothing_moves_nothing_and_is_no_fault(knobs: dict[str, bool], world: int) -> None:
    """In one pass and in two; the count known to the host, or on the device; the loss 0 or NaN. No step may be wrong (budget 0)."""
    events = run(tree({"batch": {"reference": 4, "total": 4, "micro": 4 // world}}, **knobs), world)
    end, told = events[-1], steps(events)
    assert isinstance(end, Ended)
    assert (end.reason, len(told)) == ("complete", ROWS)
    empty = [number for number, m in enumerate(told) if m["batch/items"] == 0]
    assert len(empty) > 20
    windows = [e.metrics for e in events if isinstance(e, Windowed)]
    assert windows[-1]["stability/empty_steps"] == windows[-1]["stability/skipped_steps"] == len(empty)
    assert windows[-1]["stability/nonfinite_steps"] == 0
    norms = [w["train/param_norm"] for w in windows]
    for number in range(1, len(told)):
        assert (norms[number] == norms[number - 1]) == (number in empty)
    assert [e.code for e in events if isinstance(e, Noticed)].count("empty_step") == 1
    assert not {"nonfinite", "dead"} & {e.code for e in events if isinstance(e, Noticed)}
    rates = [m["train/lr"] for m in told]
    assert rates == pytest.approx([0.05 * (1 - n / ROWS) for n in range(ROWS)]), "the schedule is in samples, and they were seen"
    assert all(math.isfinite(end.metrics[name] or math.nan) for name in ("eval/loss", "eval/ema_loss"))


@pytest.mark.parametrize("backend", ["ddp", "fsdp", "zero0", "zero1", "zero2", "zero3"])
def test_on_two_ranks_of_every_backend_too(tmp_path: Path, backend: str) -> None:
    ema = {} if backend.startswith("zero") and backend != "zero0" else {"ema": 0.9}
    over = {
        "optim": {"name": "adamw", "lr": 0.05, **ema},
        "backend": {"name": backend},
        "run": {"dir": str(tmp_path / "run")},
        "schedule": {"samples": 2 * ROWS},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(tree(over)))
    run_ranks(2, ["harness", str(tmp_path / "run.yaml")], tmp_path)
    lines = [json.loads(text) for text in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    windows = [line for line in lines if line["event"] == "window"]
    empty = [line["step"] for line in lines if line["event"] == "step" and line["batch/items"] == 0]
    assert lines[-1]["reason"] == "complete"
    assert len(empty) > 5
    assert (windows[-1]["stability/empty_steps"], windows[-1]["stability/nonfinite_steps"]) == (len(empty), 0)
    norms = {w["step"]: w["train/param_norm"] for w in windows}
    for step in range(2, len(norms) + 1):
        assert (norms[step] == norms[step - 1]) == (step in empty)


def test_a_window_s_mean_is_that_of_its_finite_steps_and_the_sample_is_named() -> None:
    over = {"guard": {"budget": 50}, "watch": {"wandb": "off", "every_steps": 8}, "batch": {"reference": 8, "total": 8}}
    for micro in (8, 4):
        over["batch"] = {"reference": 8, "total": 8, "micro": micro}
        events = run(tree(over, poison=3))
        told = {e.step: e.metrics for e in events if isinstance(e, Stepped)}
        bad = [step for step, m in told.items() if m["batch/items"] and not math.isfinite(m["train/loss"])]
        windows = [e for e in events if isinstance(e, Windowed)]
        assert len(bad) == 4, "one in each epoch"
        first = 1
        for window in windows:
            good = [m for s in range(first, window.step + 1) if (m := told[s])["batch/items"] and s not in bad]
            items = sum(m["batch/items"] for m in good)
            if items:
                mean = sum(m["train/loss"] * m["batch/items"] for m in good) / items
                assert window.metrics["train/loss"] == pytest.approx(mean)
                assert math.isfinite(window.metrics["train/grad_norm"] or math.nan)
            first = window.step + 1
        assert windows[-1].metrics["stability/nonfinite_steps"] == len(bad)
        named = [e for e in events if isinstance(e, Noticed) and e.code == "nonfinite_samples"]
        assert [e.step for e in named] == bad
        assert {e.message for e in named} == {"the loss of sample 3 is not finite: look at the data"}


def test_a_run_whose_loss_counts_nothing_in_any_step_is_not_complete() -> None:
    wrong = tree()
    wrong["recipe"]["use"] = f"{__file__}:Uncounted"
    with pytest.raises(
        UserError, match=rf"recipe\.use: loss\(\) has counted nothing in any of {ROWS} steps, so no weight has changed"
    ):
        run(wrong)


@pytest.mark.parametrize(("steps", "over", "found"), [(1000, False, True), (999, False, False), (3, True, True), (0, True, False)])
def test_it_is_said_in_time_and_not_too_soon(steps: int, over: bool, found: bool) -> None:
    with pytest.raises(UserError) if found else nullcontext():
        check_counted(State(step=steps, empty_steps=steps), over=over)
    check_counted(State(step=steps, empty_steps=max(steps - 1, 0)), over=over and steps > 0)
