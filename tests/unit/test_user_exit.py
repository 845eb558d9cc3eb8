"""A recipe that calls exit(): the run fails, and says where; without a word it would look as if it were over."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.config.user_errors import ExitedError, as_error
from harness.recipes.base import Recipe, Split, Sum
from launch.cli import main
from tests.support.processes import run_command


class Rows:
    """Eight samples, of which one ends the program."""

    def __init__(self, leaves: bool) -> None:
        self._leaves = leaves

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        if self._leaves and index == 5:
            sys.exit(0)
        return torch.full((1,), float(index))


@dataclass(frozen=True)
class Leaving(Recipe):
    """It calls exit() at one `place`."""

    place: str = ""

    def model(self) -> nn.Module:
        """One weight."""
        return nn.Linear(1, 1)

    def data(self, split: Split) -> Any:
        """Eight rows."""
        if self.place == "data":
            raise SystemExit
        return Rows(self.place == "sample")

    def loss(self, model: nn.Module, batch: Tensor) -> Sum:
        """Squared."""
        if self.place == "loss" and model.training:
            sys.exit("enough")
        return (model(batch) ** 2).sum(), len(batch)


def run_file(folder: Path, place: str) -> str:
    """Two epochs of it."""
    tree = {
        "recipe": {"use": f"{__file__}:Leaving", "place": place, "samples": 8},
        "batch": {"reference": 4, "total": 4},
        "optim": {"lr": 0.01},
        "schedule": {"epochs": 2},
        "watch": {"wandb": "off"},
        "run": {"dir": str(folder / "run")},
    }
    (folder / "run.yaml").write_text(json.dumps(tree))
    return str(folder / "run.yaml")


@pytest.mark.parametrize(("place", "code"), [("sample", "0"), ("loss", "'enough'"), ("data", "")])
def test_a_recipe_that_exits_is_a_failure_with_its_place(place: str, code: str, tmp_path: Path) -> None:
    with pytest.raises(ExitedError) as caught:
        main(["train", run_file(tmp_path, place)])
    assert str(caught.value) == f"exit({code}) was called"
    journal = tmp_path / "run" / "events.jsonl"
    assert not journal.exists() or "complete" not in journal.read_text()


def test_the_program_says_so_and_ends_with_status_1(tmp_path: Path) -> None:
    told = run_command([sys.executable, "-m", "launch", "train", run_file(tmp_path, "sample")], tmp_path, status=1)
    assert "exit(0) was called" in told
    assert f'in File "{__file__}", line' in told
    assert "in __getitem__" in told


def test_other_errors_are_as_they_were() -> None:
    error = ValueError("x")
    assert as_error(error) is error
