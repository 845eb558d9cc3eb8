"""The example for Lightning: losses of the script before, four times the batch, two ranks resumed on one; the guard."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.config.yaml_text import to_yaml
from tests.support.processes import ROOT, run_command, run_ranks

lightning = pytest.importorskip("lightning")
EXAMPLES = ROOT / "configs" / "examples"
Steps = list[tuple[int, float, float]]


def losses(folder: Path, script: str, *options: str, ranks: int = 1) -> Steps:
    """Run an example: (step, loss, rate) of each step."""
    out = folder / f"{ranks}-{len(options)}-{script}.json"
    argv = ["tests.dist.workers.lightning_losses", str(out), str(EXAMPLES / script), *options]
    if ranks == 1:
        run_command([sys.executable, "-m", *argv], ROOT)
    else:
        run_ranks(ranks, argv, ROOT, torchrun=True)
    found: Steps = [tuple(step) for step in json.loads(out.read_text())]
    return found


def settings(folder: Path, total: int) -> list[str]:
    """Options of the example for a batch of `total`, in passes of 32 samples."""
    file = folder / "run.yaml"
    tree = {
        "recipe": {"samples": 1408},
        "batch": {"reference": 32, "total": total, "micro": 32},
        "optim": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        "schedule": {"epochs": 2, "shape": "cosine"},
    }
    file.write_text(to_yaml(tree))
    return ["--run", str(file), "--folder", str(folder / "saved")]


def test_at_the_reference_batch_the_losses_are_those_of_the_script_before(tmp_path: Path) -> None:
    before = losses(tmp_path, "lightning_plain.py")
    after = losses(tmp_path, "lightning_run.py", *settings(tmp_path, 32))
    assert len(before) == 88
    assert [loss for _, loss, _ in after] == pytest.approx([loss for _, loss, _ in before], rel=1e-6)


def test_four_times_the_batch_on_two_ranks_resumes_on_one_at_the_next_sample(tmp_path: Path) -> None:
    options = settings(tmp_path, 128)
    two = losses(tmp_path, "lightning_run.py", *options, "--devices", "2", ranks=2)
    resumed = losses(tmp_path, "lightning_run.py", *options, "--resume", str(tmp_path / "saved" / "step=10.ckpt"))
    alone = losses(tmp_path, "lightning_run.py", *options)
    assert [step for step, _, _ in alone] == list(range(1, 23))
    assert max(rate for _, _, rate in alone) == pytest.approx(0.2, rel=0.02)
    for found, start in ((two, 0), (resumed, 10)):
        assert [step for step, _, _ in found] == [step for step, _, _ in alone][start:]
        assert [loss for _, loss, _ in found] == pytest.approx([loss for _, loss, _ in alone][start:], rel=1e-5)
        assert [rate for _, _, rate in found] == [rate for _, _, rate in alone][start:]


class Task(lightning.LightningModule):  # type: ignore[misc, name-defined]
    """A linear task."""

    def __init__(self) -> None:
        super().__init__()
        self.line = torch.nn.Linear(4, 1)
        self.seen: list[float] = []

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        """The mean squared output."""
        self.seen.append(self.line.weight.detach().sum().item())
        return self.line(batch[0]).square().mean()  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.mark.filterwarnings("ignore")
def test_a_step_that_is_not_finite_moves_nothing_and_a_budget_of_them_stops() -> None:
    from harness import LightningGuard

    data = torch.ones(80, 4)
    data[8:16] = data[40:] = math.nan
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(data), batch_size=8)
    guard, task = LightningGuard(budget=2), Task()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    lightning.Trainer(accelerator="cpu", devices=1, max_epochs=1, callbacks=[guard], **quiet).fit(task, loader)
    assert guard.skipped == [2, 6, 7]
    assert all(math.isfinite(value) for value in task.seen)
    assert task.seen[1] == task.seen[2]
    assert task.seen[2] != task.seen[3]
