"""Run in one process: what it refuses, what its guard leaves out, how it stops, and what it leaves to be read."""

import json
import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from harness import Run
from harness.checkpoint import reader
from harness.config.errors import UserError
from harness.engine.script import backend_of, precision_of
from harness.engine.script_fsdp import open_script_fsdp
from harness.engine.script_zero import open_script_zero

ROWS = 96


def settings(folder: Path, **over: Any) -> dict[str, Any]:
    """Two epochs at a batch of 8."""
    return {
        "batch": {"reference": 8, "total": 8},
        "schedule": {"epochs": 2},
        "watch": {"wandb": "off", "every_steps": 4},
        "run": {"dir": str(folder / "run")},
    } | over


def parts(lr: float = 0.02, **loader: Any) -> tuple[Accelerator, nn.Module, torch.optim.Optimizer, DataLoader[Any]]:
    """An accelerator, a prepared linear model with its SGD, and a loader of its data."""
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    x = torch.randn(ROWS, 5)
    data = TensorDataset(x, x.sum(1, keepdim=True))
    model = nn.Linear(5, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    return accelerator, *accelerator.prepare(model, optimizer), DataLoader(data, **({"batch_size": 8, "shuffle": True} | loader))


def train(run: Run, model: nn.Module, *, poison: int | None = None, stop_at: int | None = None) -> list[float]:
    """The script's loop: the losses it saw. The loss of step `poison` is NaN; at step `stop_at` the process gets SIGTERM."""
    seen: list[float] = []
    for _ in run.epochs():
        for x, y in run.batches():
            loss = (model(x) - y).square().mean() * (math.nan if len(seen) == poison else 1.0)
            run.backward(loss)
            if len(seen) == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            run.step()
            seen.append(loss.item())
        run.evaluated({"loss": seen[-1]})
    return seen


def journal(folder: Path) -> list[dict[str, Any]]:
    """All lines of the run's journal."""
    return [json.loads(line) for line in (folder / "run" / "events.jsonl").read_text().splitlines()]


def test_a_loss_that_is_not_finite_moves_nothing_and_is_said(tmp_path: Path) -> None:
    accelerator, model, optimizer, loader = parts()
    run = Run(settings(tmp_path), accelerator, model, optimizer, loader)
    seen = train(run, model, poison=5)
    assert len(seen) == 24
    assert math.isnan(seen[5])
    assert all(math.isfinite(one) for number, one in enumerate(seen) if number != 5)
    assert [line["step"] for line in journal(tmp_path) if line.get("code") == "nonfinite"] == [6]


def test_the_guard_rolls_a_script_back_at_half_the_rate(tmp_path: Path) -> None:
    accelerator, model, optimizer, loader = parts()
    guarded = settings(tmp_path, guard={"nonfinite": "roll_back"})
    seen = train(Run(guarded, accelerator, model, optimizer, loader), model, poison=14)
    lines = journal(tmp_path)
    (back,) = [line for line in lines if line.get("code") == "roll_back"]
    assert len(seen) > 24, "the steps since the checkpoint were taken again"
    assert "lr x 0.5" in back["message"]
    assert [line["train/lr"] for line in lines if line["event"] == "step"][-1] == pytest.approx(0.01)
    assert lines[-1]["reason"] == "complete"


def test_a_signal_stops_with_a_checkpoint_and_the_next_start_goes_on_exactly(tmp_path: Path) -> None:
    accelerator, model, optimizer, loader = parts()
    expected = train(Run(settings(tmp_path / "whole"), accelerator, model, optimizer, loader), model)
    accelerator, model, optimizer, loader = parts()
    first = train(Run(settings(tmp_path), accelerator, model, optimizer, loader), model, stop_at=6)
    ends = [line for line in journal(tmp_path) if line["event"] == "end"]
    assert [line["reason"] for line in ends] == ["stop_requested"]
    accelerator, model, optimizer, loader = parts()
    rest = train(Run(settings(tmp_path), accelerator, model, optimizer, loader), model)
    assert first + rest == expected
    assert len(first) < len(expected)


def test_the_last_evaluation_is_told_before_the_end_and_is_in_the_checkpoint(tmp_path: Path) -> None:
    accelerator, model, optimizer, loader = parts()
    train(Run(settings(tmp_path), accelerator, model, optimizer, loader), model)
    kinds = [line["event"] for line in journal(tmp_path) if line["event"] in ("eval", "end", "checkpoint")]
    assert kinds[-2:] == ["eval", "end"] or kinds[-3:] == ["eval", "checkpoint", "end"]
    found, _ = reader.newest(str(tmp_path / "run" / "checkpoints"))
    assert found is not None
    assert found.about["score"] is not None


def test_the_plan_s_numbers_are_put_in_the_place_of_the_tuned_ones(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    model = nn.Linear(5, 1)
    groups: list[dict[str, Any]] = [{"params": [model.weight]}, {"params": [model.bias], "lr": 0.002, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.001, weight_decay=0.1)
    loader = DataLoader(TensorDataset(torch.randn(ROWS, 5), torch.randn(ROWS, 1)), batch_size=8)
    model, optimizer = accelerator.prepare(model, optimizer)
    run = Run(settings(tmp_path, batch={"reference": 8, "total": 32}), accelerator, model, optimizer, loader)
    first, second = optimizer.optimizer.param_groups
    assert (run.plan.optimizer, run.plan.rule, run.plan.accumulate) == ("adamw", "sqrt", 4)
    assert (first["betas"], first["eps"], first["weight_decay"]) == (run.plan.betas, run.plan.eps, run.plan.weight_decay)
    assert run.plan.weight_decay != 0.1
    assert (second["lr_scale"], second["weight_decay"]) == (2.0, 0.0)
    for _ in run.batches():
        run.backward(next(iter(model.parameters())).sum())
        run.step()
        if first["lr"] != 0.001:
            break
    run.close()
    assert second["lr"] == 2 * first["lr"]


@pytest.mark.parametrize(
    ("over", "match"),
    [
        ({"optim": {"lr": 0.3}}, r"optim\.lr: is 0\.3, but the script's SGD has 0\.02"),
        ({"recipe": {"use": "digits"}}, "recipe: is given, but model, data and loss are the script's"),
        ({"eval": {"every_epochs": 1}}, r"eval\.every_epochs: is given, but the script evaluates"),
        ({"watch": {"loss_by_source": True}}, r"watch\.loss_by_source: is true, but the script computes its loss"),
        ({"precision": "bf16"}, "precision: is bf16, but the script's Accelerator computes in fp32"),
        ({"backend": {"name": "zero2"}}, r"backend\.name: is zero2, but the script's Accelerator runs on ddp"),
        ({"backend": {"bucket_mb": 5}}, r"backend\.bucket_mb: is given, but Accelerate sets up the backend"),
    ],
)
def test_settings_that_contradict_the_script_are_refused(over: dict[str, Any], match: str, tmp_path: Path) -> None:
    accelerator, model, optimizer, loader = parts()
    with pytest.raises(UserError, match=match):
        Run(settings(tmp_path, **over), accelerator, model, optimizer, loader)
    assert not (tmp_path / "run").exists()


def test_a_loader_whose_order_is_not_known_is_refused(tmp_path: Path) -> None:
    accelerator, model, optimizer, loader = parts(shuffle=False, sampler=WeightedRandomSampler([1.0] * ROWS, ROWS))
    with pytest.raises(UserError, match="samples by WeightedRandomSampler"):
        Run(settings(tmp_path), accelerator, model, optimizer, loader)


def test_an_optimizer_that_lacks_a_trained_weight_is_refused(tmp_path: Path) -> None:
    accelerator, model, _, loader = parts()
    optimizer = torch.optim.SGD([next(iter(model.parameters()))], lr=0.1, momentum=0.9)
    with pytest.raises(UserError, match="lacks bias"):
        Run(settings(tmp_path), accelerator, model, optimizer, loader)


def test_a_pass_without_backward_and_a_step_without_step_are_named(tmp_path: Path) -> None:
    accelerator, model, optimizer, loader = parts()
    run = Run(settings(tmp_path), accelerator, model, optimizer, loader)
    batches = run.batches()
    next(batches)
    with pytest.raises(UserError, match=r"run\.backward: was not called in a pass"):
        next(batches)
    run.close()
    assert journal(tmp_path)[-1]["reason"] == "failed"


def test_a_run_of_a_script_is_no_recipe_to_train(tmp_path: Path) -> None:
    from harness.config.loader import load
    from harness.recipes.base import load_recipe

    accelerator, model, optimizer, loader = parts()
    train(Run(settings(tmp_path), accelerator, model, optimizer, loader), model)
    with pytest.raises(UserError, match="run that script again"):
        load_recipe(load(tmp_path / "run" / "run.yaml").recipe)


@pytest.mark.parametrize("name", ["fsdp", "deepspeed"])
def test_shards_that_accelerate_has_dropped_are_not_taken_for_given(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerator, model, optimizer, loader = parts()
    monkeypatch.setenv(f"ACCELERATE_USE_{name.upper()}", "true")
    with pytest.raises(UserError, match=f"was started with --use_{name}, but Accelerate has dropped it on cpu"):
        Run(settings(tmp_path), accelerator, model, optimizer, loader)


@pytest.mark.parametrize(
    ("kind", "held", "match"),
    [
        (DistributedType.FSDP, {"fsdp_version": 1}, "got FSDP1, .*--fsdp_version 2"),
        (DistributedType.FSDP, {"fsdp_version": 2, "activation_checkpointing": True}, "got fsdp_activation_checkpointing"),
        (DistributedType.DEEPSPEED, {"zero_stage": 0}, "got DeepSpeed with zero_stage 0"),
        (DistributedType.MEGATRON_LM, {}, "cannot end the steps of MEGATRON_LM"),
    ],
)
def test_what_no_step_of_ours_can_end_is_refused_in_a_line(kind: DistributedType, held: dict[str, Any], match: str) -> None:
    plugin = SimpleNamespace(**held)
    state = SimpleNamespace(distributed_type=kind, fsdp_plugin=plugin, deepspeed_plugin=plugin)
    accelerator: Any = SimpleNamespace(state=state, distributed_type=kind, device=torch.device("cpu"))
    with pytest.raises(UserError, match=match):
        backend_of(accelerator)


@pytest.mark.parametrize(
    ("kind", "precision", "match"),
    [
        (DistributedType.NO, "fp16", "cannot take over mixed_precision fp16"),
        (DistributedType.DEEPSPEED, "bf16", "got bf16 under DeepSpeed"),
    ],
)
def test_precisions_that_an_own_loop_cannot_have_are_refused(kind: DistributedType, precision: str, match: str) -> None:
    accelerator: Any = SimpleNamespace(distributed_type=kind, mixed_precision=precision)
    with pytest.raises(UserError, match=match):
        precision_of(accelerator)


def test_several_optimizers_are_refused_with_the_example_that_has_two(tmp_path: Path) -> None:
    accelerator, model, optimizer, loader = parts()
    with pytest.raises(UserError, match=r"got 2 optimizers, .* see configs/examples/gan_run\.py"):
        Run(settings(tmp_path), accelerator, model, [optimizer, optimizer], loader)


@pytest.mark.parametrize(
    ("open_it", "backend", "match"),
    [
        (open_script_fsdp, "fsdp", "got FSDP2 with weights that are frozen or not sharded \\(weight, bias\\)"),
        (open_script_zero, "zero3", "got zero3 with frozen weights \\(weight, bias\\)"),
    ],
)
def test_frozen_weights_in_shards_are_refused(open_it: Any, backend: str, match: str) -> None:
    model = nn.Linear(5, 1).requires_grad_(False)
    engine = SimpleNamespace(module=model, optimizer=None) if backend == "zero3" else model
    plan = SimpleNamespace(backend=backend)
    with pytest.raises(UserError, match=match):
        open_it(None, plan, None, Accelerator(cpu=True), engine, None)
