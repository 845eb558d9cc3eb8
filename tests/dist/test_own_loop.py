"""Meters beside loops that are not ours: an Accelerate loop on one and two ranks, and Hugging Face's Trainer."""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.config.errors import UserError
from harness.modeling.noise_meter import PassNoise
from harness.telemetry.events import Metrics
from harness.telemetry.metric_catalog import METRICS
from harness.watch.hf_trainer import Telemetry
from tests.support.processes import run_ranks


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_noise_scale_of_an_accelerate_loop_is_that_of_single_examples(ranks: int, tmp_path: Path) -> None:
    output = run_ranks(ranks, ["tests.dist.workers.own_loop"], tmp_path)
    told = json.loads(output.split("TOLD ")[1].splitlines()[0])
    assert told["measured"] == pytest.approx(told["true"], rel=0.1)
    assert told["faulty"] == pytest.approx(told["true"], rel=0.1), "a NaN reached the estimate, or steps around it were lost"


def test_one_pass_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="accumulate gradients over at least 2 passes a step"):
        PassNoise(nn.Linear(1, 1).parameters(), micro=4, passes=1)


def test_a_short_step_is_left_out() -> None:
    weight = nn.Parameter(torch.ones(3))
    noise = PassNoise([weight], micro=4, passes=3)
    for passes in (2, 1):
        for _ in range(passes):
            weight.grad = torch.ones(3)
            noise.passed()
        noise.stepped()
    with pytest.warns(UserWarning, match="no noise scale, since none of 2 steps had 3 passes, the last had 1: give passes="):
        assert noise.read().samples is None
    assert noise.read().weight == 0, "said once"


class Line(nn.Module):
    """A linear model whose loss is what its batch says; `poison` makes it NaN in one step."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 1)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The mean squared error, as Trainer wants it."""
        out = self.inner(x)
        return {"loss": (out - y).square().mean(), "out": out}


def trained(folder: Path, told: list[Metrics], **options: Any) -> Any:
    """Train 500 rows for 4 epochs of 8 steps, the last of each short."""
    from transformers import Trainer, TrainingArguments

    torch.manual_seed(0)
    rows = [{"x": x, "y": x.sum(0, keepdim=True)} for x in torch.randn(500, 8)]
    if options.pop("poison", False):
        rows[7]["x"] = torch.full((8,), math.nan)
    settings: dict[str, Any] = {
        "use_cpu": True, "report_to": [], "logging_steps": 4, "per_device_train_batch_size": 16, "num_train_epochs": 4,
        "gradient_accumulation_steps": 4, "save_strategy": "no", "disable_tqdm": True, "logging_nan_inf_filter": False,
        "eval_strategy": "steps", "eval_steps": 4, "dataloader_pin_memory": False, "learning_rate": 1e-6, "max_grad_norm": 0.01,
    }  # fmt: skip
    args = TrainingArguments(str(folder), **(settings | options))
    trainer = Trainer(Line(), args, train_dataset=rows, eval_dataset=rows[:50], callbacks=[Telemetry(told.append)])
    trainer.train()
    return trainer


def test_the_trainer_s_callback_tells_true_sums(tmp_path: Path) -> None:
    told: list[Metrics] = []
    trainer = trained(tmp_path, told)
    assert [m["progress/samples"] for m in told] == [256, 500, 756, 1000, 1256, 1500, 1756, 2000]
    logged = [line for line in trainer.state.log_history if "loss" in line]
    assert [m["train/loss"] for m in told] == [line["loss"] for line in logged]
    assert all(set(m) <= {known.name for known in METRICS} for m in told)
    for last, this in pairwise(told):
        rate, seconds = this["throughput/samples_per_s"], this["progress/train_s"]
        before, earlier = last["progress/samples"], last["progress/train_s"]
        samples = this["progress/samples"]
        assert rate
        assert seconds is not None
        assert earlier is not None
        assert samples is not None
        assert before is not None
        assert rate * (seconds - earlier) == pytest.approx(samples - before, rel=1e-9)


def test_the_trainer_s_evaluations_are_no_training_time(tmp_path: Path) -> None:
    """Trainer's own measure of them fits into the pause, and training, pauses and the rest share the wall time out."""
    told: list[Metrics] = []
    trainer = trained(tmp_path, told)
    seconds = {name: value for name, value in told[-1].items() if name.endswith("_s") and value is not None}
    evaluated = [line["eval_runtime"] for line in trainer.state.log_history if "eval_runtime" in line][: len(told) - 1]
    assert seconds["pause/eval_s"] >= sum(evaluated) - 1e-4 * len(evaluated)
    apart = sum(value for name, value in seconds.items() if name.startswith("pause/")) + seconds["progress/train_s"]
    assert apart <= seconds["progress/wall_s"]


def test_the_trainer_s_noise_scale_is_no_victim_of_its_clipping(tmp_path: Path) -> None:
    """Clipping to 0.01 comes before the callback sees a step's end; at almost fixed weights both runs see the same gradients."""
    clipped: list[Metrics] = []
    free: list[Metrics] = []
    trained(tmp_path, clipped)
    trained(tmp_path, free, max_grad_norm=0.0)
    assert clipped[-1]["batch/noise_scale_samples"] == pytest.approx(free[-1]["batch/noise_scale_samples"], rel=0.01)


def test_the_trainer_s_nan_stays_a_nan(tmp_path: Path) -> None:
    told: list[Metrics] = []
    trained(tmp_path, told, poison=True)
    assert any(math.isnan(m["train/loss"] or 0.0) for m in told)


def test_a_trainer_that_would_hide_a_nan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="logging_nan_inf_filter"):
        trained(tmp_path, [], logging_nan_inf_filter=True)


def test_two_passes_are_too_few_and_the_noise_scale_is_null(tmp_path: Path) -> None:
    told: list[Metrics] = []
    trained(tmp_path, told, gradient_accumulation_steps=2)
    assert {m["batch/noise_scale_samples"] for m in told} == {None}


def test_what_a_function_of_the_trainer_s_callback_raises_is_none_of_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[Metrics] = []

    class Fragile(list[Metrics]):
        def append(self, metrics: Metrics) -> None:
            told.append(metrics)
            if len(told) > 2:
                metrics["train/acuracy"]

    trainer = trained(tmp_path, Fragile())
    assert (trainer.state.global_step, len(told)) == (32, 8)
    lines = [line for line in capsys.readouterr().err.splitlines() if "Telemetry" in line]
    assert len(lines) == 2
    assert "warn   Telemetry failed on log: KeyError: 'train/acuracy'" in lines[0]
    assert lines[1] == "warn   Telemetry missed 6 of 8 events: 6 log"
