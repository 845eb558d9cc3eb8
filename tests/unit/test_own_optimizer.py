"""An optimizer of the recipe's own: its groups keep their rates, what it does not hold is not trained, the rest is refused."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from harness.config.errors import UserError
from harness.config.loader import decode
from harness.data.batch_tree import move
from harness.data.feed import Micro, Table
from harness.data.sample_order import Chunk
from harness.engine.factory import open_engine
from harness.engine.training_engine import TrainingEngine
from harness.plan.plan import Plan, plan
from harness.plan.world import World
from harness.recipes.base import Recipe, Split, Sum, load_recipe
from harness.tools.verify import verify

LAYERS = 4


@dataclass(frozen=True)
class Layered(Recipe):
    """Four linear layers."""

    kind: str = "decayed"

    def model(self) -> nn.Module:
        """[n, 3] -> [n, 3]."""
        return nn.Sequential(*(nn.Linear(3, 3) for _ in range(LAYERS)))

    def optimizer(self, model: nn.Module, plan: Plan) -> Optimizer | None:
        """By `kind`."""
        assert isinstance(model, nn.Sequential)
        lr, last = plan.lr(0), model[-1]
        if self.kind == "decayed":
            groups = [{"params": m.parameters(), "lr": lr * 0.7**n} for n, m in enumerate(reversed(model))]
            return SGD(groups, lr=lr, momentum=0.9)
        if self.kind == "peak":
            return SGD([{"params": m.parameters(), "lr": plan.target_lr * 0.5**n} for n, m in enumerate(model)], lr=plan.target_lr)
        if self.kind == "last":
            return SGD(last.parameters(), lr=lr)
        if self.kind == "scaled":
            return SGD([{"params": m.parameters(), "lr_scale": 2.0 * n} for n, m in enumerate(model)], lr=7.0)
        if self.kind == "literal":
            return SGD(model.parameters(), lr=0.1234)
        if self.kind == "foreign":
            return SGD([*model.parameters(), nn.Parameter(torch.ones(5))], lr=lr)
        if self.kind == "nothing":
            model.requires_grad_(False)
            return SGD(model.parameters(), lr=lr)
        if self.kind == "sam":
            return Sharp(model.parameters(), {"lr": lr})
        return torch.optim.LBFGS(model.parameters(), lr=lr)

    def data(self, split: Split) -> Table:
        """32 rows."""
        x = torch.randn(32, 3, generator=torch.Generator().manual_seed(len(split)))
        return Table({"x": x, "y": x.cumsum(1)})

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Sum:
        """Squared error."""
        return (model(batch["x"]) - batch["y"]).square().sum(), len(batch["x"])


class Sharp(Optimizer):
    """As SAM is written: two steps."""

    def first_step(self) -> None:
        """The first."""

    def second_step(self) -> None:
        """The second."""


def tree(kind: str) -> dict[str, Any]:
    """A run file of 8 steps; the first two warm up."""
    return {
        "recipe": {"use": f"{__file__}:Layered", "kind": kind},
        "batch": {"reference": 4, "total": 8},
        "optim": {"name": "sgd", "lr": 0.01, "clip": 0.5},
        "scaling": {"rule": "linear", "warmup_samples": 16},
        "schedule": {"samples": 64},
        "watch": {"wandb": "off"},
    }


def opened(kind: str) -> tuple[TrainingEngine, Micro, Plan]:
    """An engine on one rank, and a batch for it."""
    c = decode(tree(kind))
    recipe, planned = load_recipe(c.recipe), plan(c, World(1, device="cpu"), 32)
    engine = open_engine(c, planned, recipe, cpu=True)
    assert isinstance(engine, TrainingEngine)
    data = recipe.data("train")
    assert isinstance(data, Table)
    return engine, Micro(move(data.take(torch.arange(8)), engine.device, engine.dtype), Chunk(0, 8)), planned


RATIOS = {
    "decayed": [0.7**n for n in range(LAYERS)],
    "peak": [0.5**n for n in range(LAYERS)],
    "last": [1.0],
    "scaled": [0.0, 2.0, 4.0, 6.0],
}


@pytest.mark.parametrize("kind", list(RATIOS))
def test_each_group_keeps_its_ratio_to_the_plans_rate(kind: str) -> None:
    engine, micro, planned = opened(kind)
    for step in range(4):
        engine.step([micro], planned.lr(step), False)
        rates = [g["lr"] for g in engine.optimizer.param_groups]
        assert rates == pytest.approx([planned.lr(step) * ratio for ratio in RATIOS[kind]])
    assert planned.lr(0) < planned.lr(1)


def test_what_the_optimizer_does_not_hold_is_not_trained_nor_part_of_the_norm() -> None:
    engine, micro, planned = opened("last")
    model = Layered().model()
    model.load_state_dict(engine.model.state_dict())
    before = {name: w.detach().clone() for name, w in model.named_parameters()}
    total, count = Layered().loss(model, micro.batch)
    (total / count).backward()  # type: ignore[no-untyped-call]
    norm = math.hypot(*(float(p.grad.norm()) for p in model[3].parameters() if p.grad is not None))  # type: ignore[index]
    engine.step([micro], planned.lr(0), False)
    assert engine.read().steps[0].grad_norm == pytest.approx(norm)
    moved = {name for name, w in engine.model.named_parameters() if not torch.equal(w, before[name])}
    assert moved == {"3.weight", "3.bias"}
    for name, p in model.named_parameters():
        assert p.grad is not None
        if name in moved:
            expected = before[name] - planned.lr(0) * p.grad * min(0.5 / (norm + 1e-6), 1.0)
            torch.testing.assert_close(engine.model.get_parameter(name).detach(), expected)


@pytest.mark.parametrize("kind", ["decayed", "last"])
def test_verify_knows_the_ratios(kind: str) -> None:
    found = verify(decode(tree(kind)), World(1, device="cpu"), cpu=True)
    assert [f for f in found if f.verdict == "differs"] == []


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("literal", r"has groups at lr 0.1234, and none is the plan's 0.0.*; build it with lr=plan.lr\(0\)"),
        ("foreign", r"holds a parameter of shape \(5,\) that model\(\) does not have"),
        ("nothing", "holds no parameter that needs a gradient"),
        ("lbfgs", "gives LBFGS, whose step.. needs a closure that runs the model again"),
        ("sam", "gives Sharp, whose step.. needs a closure that runs the model again"),
    ],
)
def test_what_cannot_be_trained_with_is_refused(kind: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        opened(kind)
