"""widebatch samples: the batch behind a spike and the steps of a sample, on any world, for runs that grew and that rolled back."""

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.analysis.sample_ledger import read_ledger
from harness.config.loader import load
from harness.data.columns import Table
from harness.data.training_order import training_order
from harness.recipes.base import Recipe, Split, Sum
from harness.worker import work
from launch.cli import main
from tests.support.processes import run_ranks

SIZE, CORRUPT = 1600, 60
SEEN: list[int] = []
"""The samples that this process has trained on, in order."""


@dataclass(frozen=True)
class Recorded(Recipe):
    """A line through points, of which one is far off; remembers the samples of each training pass."""

    def model(self) -> nn.Module:
        """[n, 1] -> [n, 1]."""
        return nn.Linear(1, 1)

    def data(self, split: Split) -> Table | None:
        """SIZE points."""
        if split == "valid":
            return None
        x = torch.linspace(-1, 1, SIZE)[:, None]
        y = 2 * x + 0.1 * torch.sin(40 * x)
        y[CORRUPT] = 1e3
        return Table({"x": x, "y": y, "id": torch.arange(SIZE)})

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Sum:
        """Squared error."""
        if model.training:
            SEEN.extend(batch["id"].tolist())
        each = (model(batch["x"]) - batch["y"]).square()
        return each.sum(), len(each)


def run_file(folder: Path, **sections: Any) -> Path:
    """A run in `folder/run`."""
    tree: dict[str, Any] = {
        "recipe": {"use": f"{__file__}:Recorded"},
        "batch": {"reference": 16, "total": 16},
        "optim": {"lr": 0.05, "clip": 1.0},
        "schedule": {"epochs": 3},
        "scaling": {"rule": "none"},
        "watch": {"wandb": "off", "every_steps": 5},
        "run": {"dir": str(folder / "run")},
    }
    path = folder / "run.yaml"
    path.write_text(json.dumps(tree | sections))
    return path


def notices(folder: Path, code: str) -> list[dict[str, Any]]:
    """The notices of a code in the journal."""
    lines = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    return [line for line in lines if line.get("code") == code]


def shown(capsys: pytest.CaptureFixture[str], *argv: str) -> list[str]:
    """The lines of a command."""
    capsys.readouterr()
    assert main(["samples", *argv]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(("ranks", "order"), [(1, "full"), (1, "blocks"), (4, "full")])
def test_the_corrupt_sample_behind_spikes_is_named(
    ranks: int, order: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each epoch it makes a spike; it alone is in the batches of all of them."""
    sections = {"batch": {"reference": 16, "total": 16, "micro": 2}, "data": {"order": order, "block": 32, "window": 4}}
    path = run_file(tmp_path, **sections)
    if ranks == 1:
        assert work(load(path), "run", {}) == 0
    else:
        run_ranks(ranks, ["harness", str(path)], tmp_path)
    run = str(tmp_path / "run")
    spikes = [line["step"] for line in notices(tmp_path / "run", "spike")]
    assert len(spikes) >= 2
    one = shown(capsys, run, "--step", str(spikes[0]))
    assert one[0].startswith(f"step {spikes[0]}: positions {16 * (spikes[0] - 1):,} to {16 * spikes[0]:,}, loss ")
    assert one[1].startswith("  spike: loss ")
    assert len(one) == 2 + 16
    (mine,) = (line for line in one if line.startswith(f"{CORRUPT}: "))
    assert "y [1000.0]" in mine, "what is wrong with it is shown"
    common = shown(capsys, run, "--step", ",".join(map(str, spikes)))
    assert mine in common
    assert f"in all of them: {sum(': x [' in line for line in common)} samples" in common
    found = shown(capsys, run, "--sample", str(CORRUPT))
    assert found[:2] == [mine, "in 3 of 300 steps"]
    steps = [int(line.split()[1].rstrip(":")) for line in found if line.startswith("step ")]
    assert set(spikes) <= set(steps)
    assert [(step - 1) * 16 // SIZE for step in steps] == [0, 1, 2]


def test_the_ledger_is_what_was_trained_on_where_the_batch_grew_and_the_run_went_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also over a restart. Steps that were undone are told as such, and gaps that the guard left are left out."""
    grown = {"reference": 16, "total": 16, "grow": "ramp", "ramp_start": 8, "ramp_increment": 8, "ramp_samples": 200}
    guard, saved = {"spike": "roll_back"}, {"every_samples": 48}
    path = run_file(tmp_path, batch=grown, guard=guard, checkpoint=saved, schedule={"epochs": 4})
    SEEN.clear()
    work(load(path, {"run.stop_after_steps": "40"}), "run", {})
    status = work(load(path), "run", {})
    assert status == 0
    run = tmp_path / "run"
    assert notices(run, "roll_back")
    ledger = read_ledger(run / "events.jsonl")
    order = training_order(Recorded().data("train"), load(path))  # type: ignore[arg-type]
    assert [i for span in ledger.steps for i in order.take(span.start, span.stop).tolist()] == SEEN
    assert {span.stop - span.start for span in ledger.steps} >= {8, 16}
    undone = [span for span in ledger.steps if span.undone]
    assert undone
    kept = [span for span in ledger.steps if not span.undone]
    assert [span.step for span in kept] == list(range(1, len(kept) + 1))
    assert all(before.stop <= after.start for before, after in pairwise(kept)), "nothing twice"
    assert any(before.stop < after.start for before, after in pairwise(kept)), "a gap was left"
    number = int(order.take(undone[0].start, undone[0].stop)[0])
    found = shown(capsys, str(run), "--sample", str(number))
    assert any(line.endswith(", undone by a roll-back or a restart") for line in found)
    assert sum(line.startswith("step ") for line in found) == sum(
        number in order.take(s.start, s.stop).tolist() for s in ledger.steps
    )


def test_what_cannot_be_shown_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run_file(tmp_path, schedule={"samples": 32})
    work(load(path), "run", {})
    run = tmp_path / "run"
    for flags, said in {
        ("--step", "3"): "--step: is 3, and the journal has no such step; give one from 1 to 2",
        ("--sample", "1600"): "--sample: is 1600, and the training data has 1,600; give one from 0 to 1599",
    }.items():
        assert main(["samples", str(run), *flags]) == 2
        assert capsys.readouterr().err.splitlines()[-1] == f"error: {said}"
    lines = (run / "events.jsonl").read_text()
    (run / "events.jsonl").write_text(lines.replace('"dataset": 1600', '"dataset": 500'))
    assert main(["samples", str(run), "--step", "1"]) == 2
    assert "recipe.use: has 1,600 training samples, and the run had 500; restore the data" in capsys.readouterr().err
    assert main(["samples", str(tmp_path / "none"), "--step", "1"]) == 2
    assert "none is not a run folder: it has no run.yaml; give the folder that a run wrote" in capsys.readouterr().err
