"""The loop in one process: what steers it, what it tells, and what it refuses."""

import gc
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.config.errors import UserError
from harness.config.loader import decode
from harness.config.schema import Config
from harness.data.feed import Table
from harness.data.sample_order import Order, derive
from harness.data.seeding import MODEL, ORDER, seed_all
from harness.plan.plan import plan
from harness.plan.world import World
from harness.recipes.base import Recipe, Split, Sum, load_recipe
from harness.telemetry.events import Ended, Evaluated, Event, Noticed, Saved, Shown, Started, Stepped, Windowed
from harness.training.loop import train
from harness.worker import work


def config(over: Mapping[str, Mapping[str, Any] | str] | None = None) -> Config:
    """Ten steps of 32 on digits, with sections replaced."""
    base: dict[str, Any] = {
        "recipe": {"use": "digits", "width": 4},
        "batch": {"reference": 32, "total": 32},
        "optim": {"lr": 0.05, "momentum": 0.9},
        "schedule": {"samples": 320},
        "watch": {"wandb": "off", "every_steps": 4},
    }
    return decode(base | dict(over or {}))


def run(c: Config, folder: Path | None = None) -> list[Event]:
    """All events of a run in this process."""
    return list(train(c, plan(c, World(1, device="cpu"), 1437), cpu=True, folder=folder))


def steps(events: list[Event]) -> list[Stepped]:
    """The optimizer steps among events."""
    return [e for e in events if isinstance(e, Stepped)]


def test_events_come_in_order_and_windows_add_up() -> None:
    events = run(config({"eval": {"every_samples": 160}}))
    kinds = [type(e) for e in events if not isinstance(e, Stepped | Noticed)]
    assert kinds == [Started, Windowed, Windowed, Evaluated, Shown, Windowed, Windowed, Evaluated, Shown, Ended]
    windows = [e for e in events if isinstance(e, Windowed)]
    assert [w.samples for w in windows] == [32, 160, 288, 320], "the first step, which warms up, is a window of its own"
    told = [s.metrics["train/loss"] for s in steps(events)]
    assert windows[1].metrics["train/loss"] == pytest.approx(sum(told[1:5]) / 4, rel=1e-12)
    assert windows[-1].metrics["progress/samples"] == 320
    assert windows[-1].metrics["progress/epoch"] == pytest.approx(320 / 1437)


def test_the_run_is_the_one_that_a_loop_written_by_hand_gives() -> None:
    """Mean loss over each batch, also the short last one; torch's own clipping; the plan's rate at each step."""
    c = config({"batch": {"reference": 48, "total": 96, "micro": 32}, "optim": {"lr": 0.05, "momentum": 0.9, "clip": 0.7}})
    c = replace(c, precision="fp64", scaling=replace(c.scaling, warmup_samples=200))
    told = [(s.metrics["train/loss"], s.metrics["train/grad_norm"]) for s in steps(run(c))]
    seed_all(derive(0, MODEL))
    recipe = load_recipe(c.recipe)
    model, data, order = recipe.model().double(), recipe.data("train"), Order(1437, derive(0, ORDER))
    assert isinstance(data, Table)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    by_hand = []
    for step, begin in enumerate(range(0, 320, 96)):
        optimizer.param_groups[0]["lr"] = plan(c, World(1, device="cpu"), 1437).lr(step)
        batch = data.take(torch.from_numpy(order.take(begin, min(begin + 96, 320))))
        loss = nn.functional.cross_entropy(model(batch["image"].double()), batch["label"])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.7)
        optimizer.step()
        by_hand.append((loss.item(), norm.item()))
    assert len(told) == len(by_hand) == 4
    for here, there in zip(told, by_hand, strict=True):
        assert here == pytest.approx(there, rel=1e-10)


def test_bf16_stays_near_fp32() -> None:
    full = [s.metrics["train/loss"] for s in steps(run(config()))]
    half = [s.metrics["train/loss"] for s in steps(run(config({"precision": "bf16"})))]
    assert half != full
    assert half == pytest.approx(full, rel=2e-2)


@pytest.mark.parametrize(("last", "sizes"), [("keep", [96, 96, 96, 32]), ("drop", [96, 96, 96])])
def test_the_last_short_batch_is_kept_with_its_true_count_or_dropped(last: str, sizes: list[int]) -> None:
    events = run(config({"batch": {"reference": 96, "total": 96, "last": last}}))
    assert [s.metrics["batch/samples"] for s in steps(events)] == sizes
    assert [s.metrics["batch/items"] for s in steps(events)] == sizes


def test_plateau_lowers_the_rate_when_the_validation_loss_does_not_improve() -> None:
    schedule = {"samples": 960, "shape": "plateau", "every": 300, "gamma": 0.5, "final_fraction": 0.2}
    events = run(config({"optim": {"lr": 1e-9}, "schedule": schedule, "eval": {"every_samples": 160}}))
    rates = [round(s.metrics["train/lr"] * 1e9, 6) for s in steps(events)]
    assert sorted(set(rates), reverse=True) in ([1.0, 0.5], [1.0, 0.5, 0.25])
    assert rates == sorted(rates, reverse=True)
    assert [e.code for e in events if isinstance(e, Noticed) and e.code == "plateau"]


def test_clipping_is_of_the_mean_gradient_and_the_norm_told_is_before_it() -> None:
    free, clipped = (steps(run(config({"optim": {"lr": 0.05, "clip": clip}})))[0].metrics for clip in (1e9, 0.01))
    assert free["train/grad_norm"] == pytest.approx(clipped["train/grad_norm"])
    assert free["train/clip_factor"] == 1
    assert clipped["train/clip_factor"] == pytest.approx(0.01 / clipped["train/grad_norm"], rel=1e-3)


def test_checkpoints_are_kept_to_the_number_asked_for(tmp_path: Path) -> None:
    events = run(config({"checkpoint": {"every_samples": 64, "keep": 3}}), tmp_path)
    saved = [e.samples for e in events if isinstance(e, Saved)]
    assert saved == [64, 128, 192, 256, 320]
    names = sorted(p.name for p in (tmp_path / "checkpoints").glob("samples-*"))
    assert names == [f"samples-{n:012d}" for n in saved[-3:]]


@pytest.mark.parametrize(
    ("over", "setting"),
    [
        ({"run": {"seed": 1}}, "run.seed"),
        ({"recipe": {"use": "digits", "width": 6}}, "recipe"),
        ({"optim": {"name": "adamw", "lr": 0.1}}, "optim.name"),
    ],
)
def test_a_resume_refuses_what_would_not_be_the_same_run(tmp_path: Path, over: dict[str, Any], setting: str) -> None:
    run(config({"run": {"stop_after_steps": 4}}), tmp_path)
    with pytest.raises(UserError) as error:
        run(config(over), tmp_path)
    assert error.value.setting == setting


def test_a_run_folder_with_only_damaged_checkpoints_is_refused_not_restarted(tmp_path: Path) -> None:
    run(config({"run": {"stop_after_steps": 4}}), tmp_path)
    for state in tmp_path.glob("checkpoints/*/state.json"):
        state.write_text(state.read_text()[:-20])
    with pytest.raises(UserError, match="none of the 1 checkpoints"):
        run(config(), tmp_path)


@dataclass(frozen=True)
class Listed(Recipe):
    """Samples in a list, fetched by worker processes."""

    workers: int = 0

    def model(self) -> nn.Module:
        """[n, 3] -> [n, 1]."""
        return nn.Linear(3, 1)

    def data(self, split: Split) -> list[dict[str, Tensor]]:
        """Forty samples."""
        rng = torch.Generator().manual_seed(0)
        return [{"x": torch.randn(3, generator=rng), "y": torch.ones(1)} for _ in range(40)]

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Sum:
        """Squared error."""
        return ((model(batch["x"]) - batch["y"]) ** 2).sum(), len(batch["x"])


@dataclass(frozen=True)
class Normalised(Recipe):
    """BatchNorm, and one training sample that is not a number."""

    def model(self) -> nn.Module:
        """[n, 3] -> [n, 1]."""
        return nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))

    def data(self, split: Split) -> Table:
        """Forty samples."""
        x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
        x[7] = float("nan") if split == "train" else 0
        return Table({"x": x})

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Sum:
        """Squared error against one."""
        return ((model(batch["x"]) - 1) ** 2).sum(), len(batch["x"])


def test_a_skipped_step_leaves_running_statistics_alone() -> None:
    """Otherwise every evaluation after it would be NaN, though no weight is."""
    recipe = {"use": f"{__file__}:Normalised"}
    c = config({"recipe": recipe, "batch": {"reference": 8, "total": 8}, "schedule": {"samples": 80}})
    events = list(train(c, plan(c, World(1, device="cpu"), 40), cpu=True))
    assert sum(isinstance(e, Noticed) and e.code == "nonfinite" for e in events) == 2
    end = events[-1]
    assert isinstance(end, Ended)
    assert math.isfinite(end.metrics["eval/loss"] or math.nan)


def test_worker_processes_change_nothing() -> None:
    losses = []
    for workers in (0, 2):
        recipe = {"use": f"{__file__}:Listed", "workers": workers}
        c = config({"recipe": recipe, "batch": {"reference": 8, "total": 8, "micro": 4}, "schedule": {"samples": 84}})
        events = list(train(c, plan(c, World(1, device="cpu"), 40), cpu=True))
        losses.append([s.metrics["train/loss"] for s in steps(events)])
    assert len(losses[0]) == 11
    assert losses[0] == losses[1]


class Frozen:
    """A watcher that tells what Python's collector leaves alone, at each event."""

    def __call__(self, event: Event) -> None:
        print("frozen", type(event).__name__, gc.get_freeze_count())


def test_no_full_collection_walks_what_start_up_made_in_the_midst_of_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gc.unfreeze()  # what another test has imported
    watch = {"wandb": "off", "every_steps": 4, "use": [f"{__file__}:Frozen"]}
    assert work(config({"run": {"dir": str(tmp_path / "run")}, "watch": watch}), "run", {"ACCELERATE_USE_CPU": "true"}) == 0
    told = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("frozen")]
    first, *windows = [int(count) for _, kind, count in told if kind in ("Started", "Windowed")]
    assert first == 0
    assert len(windows) == 4
    assert all(count > 100_000 for count in windows)
    assert gc.get_freeze_count() == 0, "given back when the run is over: what it left can be freed"


def test_the_warnings_of_a_plan_are_said_once_and_new_ones_at_a_resume(tmp_path: Path) -> None:
    def said(**scaling: float) -> list[str]:
        over = {"batch": {"reference": 32, "total": 64}, "schedule": {"samples": 640}, "run": {"stop_after_steps": 1}}
        c = config(over | {"scaling": {"rule": "linear", **scaling}})
        planned = plan(c, World(1, device="cpu"), 1437)
        codes = {w.code for w in planned.warnings}
        return [e.code for e in train(c, planned, cpu=True, folder=tmp_path) if isinstance(e, Noticed) and e.code in codes]

    assert said() == ["short_warmup", "few_steps"]
    assert said() == []
    assert said(largest_stable_lr=0.01) == ["past_headroom"], "and the second most serious was said before"
