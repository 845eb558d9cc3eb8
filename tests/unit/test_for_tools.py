"""The plan in other tools' words: recorded texts, and Trainer itself at the plan's rate and losses."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness import TrainerGuard, arguments_for, make_plan, planned
from harness.config.errors import UserError
from harness.config.loader import decode
from harness.config.schema import Config
from harness.plan.for_tools import TOOLS, Tool, text_of
from harness.plan.plan import Plan
from harness.plan.world import World
from launch.cli import main
from tests.support.processes import ROOT

GOLDEN = ROOT / "tests" / "golden"
ROWS = 256


def config(**over: Any) -> Config:
    """AdamW tuned at 16, wanted at 64, over four epochs of 256 rows."""
    return decode(
        {
            "recipe": {"samples": ROWS},
            "batch": {"reference": 16, "total": 64, "micro": 16},
            "optim": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1, "clip": 1.0},
            "scaling": {"warmup_epochs": 1},
            "schedule": {"epochs": 4, "shape": "cosine"},
        }
        | over
    )


@pytest.mark.parametrize("tool", TOOLS)
def test_each_tool_s_arguments_are_the_recorded_ones(tool: Tool) -> None:
    c = config(backend={"name": "zero2"} if tool == "deepspeed" else {"name": "ddp"})
    text = text_of(tool, arguments_for(tool, c, make_plan(c, World(2, device="cpu"))))
    assert text == (GOLDEN / f"for_{tool}.txt").read_text()


def test_the_command_prints_them_as_text_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    digits = str(ROOT / "configs" / "digits.yaml")
    assert main(["plan", digits, "--gpus", "8", "--for", "trainer"]) == 0
    assert "'learning_rate': 0.16," in capsys.readouterr().out
    assert main(["plan", digits, "--gpus", "8", "--for", "trainer", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["arguments"]["max_steps"] == 169
    assert any("each epoch ends in a step of 157 samples" in note for note in told["notes"])


@pytest.mark.parametrize(
    ("flags", "fragment"),
    [
        (["--gpus", "1,2", "--for", "trainer"], "--for: is trainer, one plan's arguments"),
        (["--gpus", "8", "--for", "deepspeed"], "backend.name is ddp; add --backend.name zero2"),
        (["--gpus", "8", "--for", "lightning", "--batch.grow", "decay", "--batch.most", "512"], "cannot change the batch"),
    ],
)
def test_what_a_tool_cannot_do_is_refused_in_one_line(flags: list[str], fragment: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(ROOT / "configs" / "digits.yaml"), *flags]) == 2
    error = capsys.readouterr().err
    assert fragment in error
    assert error.count("\n") == 1


def data(poison: int | None = None) -> list[dict[str, Tensor]]:
    """Rows of a linear task; the one at `poison` is NaN."""
    torch.manual_seed(0)
    rows = [{"x": x, "y": x.sum(0, keepdim=True) + 0.1} for x in torch.randn(ROWS, 8)]
    if poison is not None:
        rows[poison]["x"] = torch.full((8,), math.nan)
    return rows


class Net(nn.Module):
    """Two layers whose loss is what Trainer wants of a model."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The mean squared error."""
        return {"loss": (self.body(x) - y).square().mean()}


def by_trainer(folder: Path, c: Config, p: Plan, rows: list[dict[str, Tensor]], **options: Any) -> Any:
    """Train by Trainer with the plan's arguments, in the order of the rows."""
    from torch.utils.data import SequentialSampler
    from transformers import Trainer, TrainingArguments

    class InOrder(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any) -> SequentialSampler:
            return SequentialSampler(rows)

    own = {"use_cpu": True, "report_to": [], "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True}
    own["dataloader_pin_memory"] = False
    model = Net()
    args = TrainingArguments(str(folder), **(arguments_for("trainer", c, p).values | own))
    trainer = InOrder(model, args, train_dataset=rows, optimizers=planned(model, p), **options)
    trainer.train()
    return trainer


def by_hand(p: Plan, rows: list[dict[str, Tensor]]) -> list[float]:
    """The same by the plan's numbers alone: the loss of each step."""
    model = Net()
    weights = [w for w in model.parameters() if w.ndim >= 2], [w for w in model.parameters() if w.ndim < 2]
    groups = [{"params": weights[0], "weight_decay": p.weight_decay}, {"params": weights[1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=p.betas or (0, 0), eps=p.eps or 0)
    losses = []
    for step in range(p.total_steps):
        start = step * p.global_batch % ROWS
        batch = rows[start : start + p.global_batch]
        loss = model(torch.stack([row["x"] for row in batch]), torch.stack([row["y"] for row in batch]))["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), p.clip or math.inf)
        for group in optimizer.param_groups:
            group["lr"] = p.lr(step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_trainer_runs_at_the_plan_s_rate_and_losses(tmp_path: Path) -> None:
    c = config()
    p = make_plan(c, World(1, device="cpu"))
    logged = [line for line in by_trainer(tmp_path, c, p, data()).state.log_history if "loss" in line]
    assert [line["learning_rate"] for line in logged] == pytest.approx([p.lr(step) for step in range(p.total_steps)], rel=1e-12)
    assert len({line["learning_rate"] for line in logged}) > 10
    assert [line["loss"] for line in logged] == pytest.approx(by_hand(p, data()), rel=1e-5)


def test_trainer_s_guard_leaves_a_step_out_that_is_not_finite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    c = config()
    p = make_plan(c, World(1, device="cpu"))
    guard = TrainerGuard()
    trainer = by_trainer(tmp_path, c, p, data(poison=70), callbacks=[guard])
    assert guard.skipped == [2, 6, 10, 14], "the poisoned row comes once an epoch"
    assert all(torch.isfinite(w).all() for w in trainer.model.parameters())
    assert trainer.state.global_step == p.total_steps
    assert "step 2: the gradient is not finite" in capsys.readouterr().err


def test_trainer_s_guard_ends_a_training_that_is_lost(tmp_path: Path) -> None:
    c = config()
    guard = TrainerGuard(budget=1)
    trainer = by_trainer(tmp_path, c, make_plan(c, World(1, device="cpu")), data(poison=70), callbacks=[guard])
    assert (guard.skipped, trainer.state.global_step) == ([2, 6], 6)


def test_trainer_s_guard_refuses_what_it_cannot_see() -> None:
    from transformers import TrainingArguments

    args = TrainingArguments("unused", use_cpu=True, report_to=[])
    args.deepspeed = "zero2.json"
    with pytest.raises(UserError, match="cannot see the gradients of FSDP and DeepSpeed"):
        TrainerGuard().on_train_begin(args, None, None)
