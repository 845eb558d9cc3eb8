"""What version 0.1 left on disk, from before the modules moved, is taken up: a run folder, its journal, and checkpoints alone."""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from harness.checkpoint.reader import newest
from harness.config.loader import decode, load
from harness.config.schema import Config
from harness.data.feed import Table
from harness.engine.factory import open_engine
from harness.plan.plan import plan
from harness.plan.world import World
from harness.recipes.base import Recipe, Split, Sum, load_recipe
from harness.recipes.contract import train_split
from tests.support.processes import ROOT, run_command
from tests.support.record_old_run import machine, steps

OLD = ROOT / "tests" / "old"
ULPS = {"train/loss": 8, "train/grad_norm": 64}
"""Units in the last place of float32 by which another CPU may differ: sums are added up in another order. With the kernels of
SSE4.1, AVX and AVX2 in place of AVX512 (ONEDNN_MAX_CPU_ISA, ATEN_CPU_CAPABILITY) 13 steps differed by 1 and 5 at most."""


@dataclass(frozen=True)
class Old(Recipe):
    """The recipe that the checkpoints in tests/old/adamw and tests/old/lion were trained by: its first layer is frozen."""

    def model(self) -> nn.Module:
        """float [n, 4] -> [n, 1]."""
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
        model[0].requires_grad_(False)
        return model

    def data(self, split: Split) -> Table:
        """64 rows."""
        return Table({"x": torch.zeros(64, 4)})

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Sum:
        """A square."""
        return model(batch["x"]).square().sum(), len(batch["x"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the old run, which stopped at step 10 of 23."""
    return Path(shutil.copytree(OLD / "run", tmp_path / "run"))


def old_config(name: str) -> Config:
    """The run file of one of the old checkpoints."""
    if name == "run":
        return load(OLD / "run" / "run.yaml")
    return decode(
        {
            "recipe": {"use": f"{__file__}:Old"},
            "batch": {"reference": 8, "total": 8},
            "optim": {"name": name, "lr": 0.05, "ema": 0.9},
            "schedule": {"samples": 64},
            "scaling": {"rule": "none"},
        }
    )


def renamed(saved: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an old checkpoint as a new one has them: the group's step with its type, no average of what is frozen."""
    for name in [name for name in saved if name.endswith("/group:step")]:
        saved[name.replace("group:", "group:int:")] = saved.pop(name).long()
    frozen = [name for name in saved if name.startswith("ema/0.")]
    for name in frozen if not any(name.startswith("optimizer/0.") for name in saved) else ():
        assert torch.equal(saved.pop(name), saved[name.replace("ema/", "model/")])
    return saved


def ulps(one: list[float], other: list[float]) -> int:
    """The largest distance of two rows of positive float32 numbers, in units in the last place."""
    bits = [np.array(row, np.float32).view(np.int32).astype(np.int64) for row in (one, other)]
    return int(np.abs(bits[0] - bits[1]).max())


@pytest.mark.parametrize(("name", "where"), [("run", "run/checkpoints"), ("adamw", "adamw"), ("lion", "lion")])
def test_weights_and_optimizer_state_of_an_old_checkpoint_are_loaded_bit_for_bit(name: str, where: str, tmp_path: Path) -> None:
    shutil.copytree(OLD / where, tmp_path / "checkpoints")
    config = old_config(name)
    recipe = load_recipe(config.recipe)
    engine = open_engine(config, plan(config, World(1, device="cpu"), len(train_split(recipe, 0))), recipe, cpu=True)
    found, complaints = newest(str(tmp_path / "checkpoints"))
    assert found is not None
    assert complaints == []
    engine.load(found.tensors)
    (file,) = (tmp_path / "checkpoints" / found.name).glob("*.safetensors")
    saved = renamed({key.partition(":")[2]: value for key, value in load_file(file).items()})
    now = {piece.name: piece.data for piece in engine.pieces()}
    assert {name.partition("/")[0] for name in saved} == {"model", "optimizer", "ema"}
    assert now.keys() == saved.keys()
    assert [name for name, value in saved.items() if value.dtype != now[name].dtype or not torch.equal(value, now[name])] == []


def test_an_old_run_is_resumed_where_it_stopped_and_ends_as_it_would_have(folder: Path) -> None:
    argv = [sys.executable, "-m", "launch", "train", str(folder / "run.yaml"), "--run.dir", str(folder)]
    output = run_command(argv, folder.parent)
    assert "complete after 23 steps" in output
    expected = json.loads((OLD / "expected.json").read_text())
    found = list(steps(folder).values())
    for name in ("samples", "train/lr"):  # whole numbers, and Python's arithmetic: the same on every machine
        assert [line[name] for line in found] == [line[name] for line in expected["steps"]]
    same = machine() == expected["machine"]
    for name, bound in ULPS.items():
        now, then = [line[name] for line in found], [line[name] for line in expected["steps"]]
        assert ulps(now, then) <= (0 if same else bound), f"{name}, {'on the machine' if same else 'not on the machine'} of 0.1"
    events = [json.loads(line)["event"] for line in (folder / "events.jsonl").read_text().splitlines()]
    assert events.count("start") == 2


def test_an_old_journal_is_reported(folder: Path) -> None:
    output = run_command([sys.executable, "-m", "launch", "report", str(folder), "--text"], folder.parent)
    assert "stop after steps after 10 steps, 2,560 samples" in output
