"""Every optimizer of the table is what it says, trains, and goes on after a resume as if nothing had been."""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.parts.optim import build_optimizer
from harness.parts.recipe import load_recipe
from harness.plan.config import Config
from harness.plan.decode import decode
from harness.plan.optimizers import OPTIMIZERS
from harness.plan.plan import plan
from harness.plan.world import World
from harness.stats.events import Event, Stepped
from harness.train import train


def config(**optim: Any) -> Config:
    """A few steps on digits."""
    return decode(
        {
            "recipe": {"use": "digits", "width": 4},
            "batch": {"reference": 32, "total": 32},
            "optim": {"lr": 0.01} | optim,
            "schedule": {"samples": 192},
            "watch": {"wandb": "off"},
        }
    )


def run(c: Config, folder: Path, stop_after: int | None) -> Iterator[Event]:
    """Train in this process."""
    tree = Config(**{**vars(c), "run": type(c.run)(stop_after_steps=stop_after)})
    return train(tree, plan(tree, World(1, device="cpu")), cpu=True, folder=folder)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_each_optimizer_trains_and_resumes_exactly(name: str, tmp_path: Path) -> None:
    c = config(name=name)
    whole = [e.metrics for e in run(c, tmp_path / "whole", None) if isinstance(e, Stepped)]
    halves = [e.metrics for stop in (3, None) for e in run(c, tmp_path / "halves", stop) if isinstance(e, Stepped)]
    assert len(whole) == len(halves) == 6
    assert halves == whole
    assert whole[-1]["train/loss"] != whole[0]["train/loss"]


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_the_table_s_defaults_are_the_optimizer_s_own(name: str) -> None:
    facts = OPTIMIZERS[name]
    package, _, kind = facts.source.rpartition(".")
    own: dict[str, Any] = vars(import_module(package))[kind]([torch.nn.Parameter(torch.zeros(2, 2))], lr=0.01).defaults
    for setting in ("momentum", "betas", "eps"):
        known = getattr(facts, setting)
        assert known == own.get(setting) or name == "nesterov", setting


def test_norms_and_biases_do_not_decay() -> None:
    c = config(name="adamw", weight_decay=0.3)
    optimizer = build_optimizer(plan(c, World(1, device="cpu")), load_recipe(c.recipe).model(), torch.device("cpu"))
    decayed = {group["weight_decay"]: {p.ndim >= 2 for p in group["params"]} for group in optimizer.param_groups}
    assert decayed == {0.3: {True}, 0.0: {False}}
