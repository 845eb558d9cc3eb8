"""Every optimizer of the table is what it says, trains, and goes on after a resume as if nothing had been."""

from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.engine.open import open_engine
from harness.parts.data import Micro, Table
from harness.parts.optim import build_optimizer
from harness.parts.recipe import load_recipe
from harness.plan.config import Config
from harness.plan.decode import decode
from harness.plan.errors import UserError
from harness.plan.optimizers import OPTIMIZERS
from harness.plan.order import Chunk
from harness.plan.plan import plan
from harness.plan.world import World
from harness.stats.events import Event, Stepped
from harness.train import train

TEXT = {"use": "bytes_lm", "width": 16, "depth": 1, "heads": 2, "context": 16, "max_bytes": 10_000}


def config(**optim: Any) -> Config:
    """A few steps on digits."""
    return decode(
        {
            "recipe": TEXT if optim.get("name") == "muon" else {"use": "digits", "width": 4},
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
    group: dict[str, Any] = {"params": [torch.nn.Parameter(torch.zeros(2, 2))]} | ({"use_muon": True} if name == "muon" else {})
    optimizer = vars(import_module(package))[kind]([group], lr=0.01)
    own: dict[str, Any] = optimizer.defaults | optimizer.param_groups[0]
    for setting in ("momentum", "betas", "eps"):
        known = getattr(facts, setting)
        assert known == own.get(setting) or name == "nesterov" or (name, setting) == ("adafactor", "eps"), setting


def test_norms_and_biases_do_not_decay() -> None:
    c = config(name="adamw", weight_decay=0.3)
    recipe = load_recipe(c.recipe)
    optimizer = build_optimizer(plan(c, World(1, device="cpu")), recipe, recipe.model(), fused=False)
    decayed = {group["weight_decay"]: {p.ndim >= 2 for p in group["params"]} for group in optimizer.param_groups}
    assert decayed == {0.3: {True}, 0.0: {False}}


RECIPE = """
from dataclasses import dataclass
from harness.parts.recipe import Group
from harness.recipes.digits import Digits

@dataclass(frozen=True)
class Slow(Digits):
    lost: bool = False

    def groups(self, model):
        first, *rest = model.parameters()
        return [Group([first], lr=0.0)] + ([] if self.lost else [Group(rest, lr=0.5)])
"""


def moved(c: Config) -> list[torch.Tensor]:
    """By how much one step moves each parameter."""
    recipe = load_recipe(c.recipe)
    engine = open_engine(c, plan(c, World(1, device="cpu")), recipe, cpu=True)
    before = [w.detach().clone() for w in engine.model.parameters()]
    data = recipe.data("train")
    assert isinstance(data, Table)
    engine.step([Micro(data.take(torch.arange(32)), Chunk(0, 32))], 0.01, False)
    return [w.detach() - was for w, was in zip(engine.model.parameters(), before, strict=True)]


def test_a_recipe_s_groups_have_rates_of_their_own(tmp_path: Path) -> None:
    """A group at factor 0 stays as it was made, the rest moves at half the plan's rate."""
    (tmp_path / "slow.py").write_text(RECIPE)
    own = replace(config(), recipe=replace(config().recipe, use=f"{tmp_path}/slow.py:Slow"))
    slow, plain = moved(own), moved(config())
    assert not slow[0].any()
    assert plain[0].any()
    for ours, full in zip(slow[1:], plain[1:], strict=True):
        torch.testing.assert_close(ours, full / 2, rtol=1e-4, atol=1e-8)


def test_a_parameter_that_is_in_no_group_is_named(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(RECIPE)
    lost = replace(config().recipe, use=f"{tmp_path}/slow.py:Slow", knobs={"width": 4, "lost": True})
    with pytest.raises(UserError, match=r"recipe.use: groups\(\) gives the parameter 0.bias 0 times"):
        moved(replace(config(), recipe=lost))


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    c = config(name="muon", weight_decay=0.3)
    recipe = load_recipe(c.recipe)
    model = recipe.model()
    optimizer = build_optimizer(plan(c, World(1, device="cpu")), recipe, model, fused=False)
    names = {id(p): name for name, p in model.named_parameters()}
    hidden = {names[id(p)] for g in optimizer.param_groups if g["use_muon"] for p in g["params"]}
    assert hidden == {name for name, p in model.named_parameters() if name.startswith("blocks.") and p.ndim == 2}
    assert {g["lr_scale"] for g in optimizer.param_groups if not g["use_muon"]} == {0.015}
    with pytest.raises(UserError, match="is muon, but the recipe names no blocks"):
        moved(replace(c, recipe=config().recipe))
