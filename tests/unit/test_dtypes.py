"""Types of tensors: complex numbers keep both parts, unsigned integers and float8 are saved, and verify looks at the set-up too."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.checkpoint.reader import newest
from harness.config.errors import UserError
from harness.config.loader import decode
from harness.data.feed import Table
from harness.data.sample_order import Order, derive
from harness.data.seeding import ORDER
from harness.engine import replicated as copies
from harness.engine.factory import open_engine
from harness.modeling.dtypes import cast_model
from harness.plan.plan import Plan, plan
from harness.plan.world import World
from harness.recipes.base import Recipe, Split, Sum
from harness.telemetry.events import Evaluated, Stepped
from harness.tools.verify import verify
from harness.training.loop import train

ODD = {
    "c64": torch.tensor([0.1 + 2j, -3 + 0.7j], dtype=torch.complex64),
    "c128": torch.tensor([0.1 + 2j, -3 + 0.7j], dtype=torch.complex128),
    "u16": torch.tensor([1, 65_535], dtype=torch.uint16),
    "u32": torch.tensor([1, 2**32 - 1], dtype=torch.uint32),
    "u64": torch.tensor([1, 2**63], dtype=torch.uint64),
    "f8_e4m3": torch.arange(-2, 2).to(torch.float8_e4m3fn),
    "f8_e5m2": torch.arange(-2, 2).to(torch.float8_e5m2),
    "f8_scale": torch.tensor([1.0, 4.0]).to(torch.float8_e8m0fnu),
    "scalar": torch.tensor(0.1, dtype=torch.float32),
}


class Rotary(nn.Module):
    """Turns pairs of features by angles that are kept as complex numbers, [4] or with a learned phase, [4]."""

    def __init__(self, phase: bool, odd: bool) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(8, 8), nn.Linear(8, 1)
        angles = torch.linspace(0.1, 2.0, 4)
        turn = torch.polar(torch.ones(4), angles)
        if phase:
            self.turn = nn.Parameter(turn)
        else:
            self.register_buffer("turn", turn, persistent=False)
        for name, tensor in ODD.items() if odd else ():
            self.register_buffer(name, tensor.clone())

    def forward(self, x: Tensor) -> Tensor:
        """[n, 8] -> [n]."""
        pairs = torch.view_as_complex(self.inner(x).reshape(-1, 4, 2)) * self.turn
        result: Tensor = self.out(torch.view_as_real(pairs).flatten(1)).squeeze(1)
        return result


@dataclass(frozen=True)
class Turned(Recipe):
    """Regression with a Rotary."""

    phase: bool = False
    odd: bool = False

    def model(self) -> nn.Module:
        """See Rotary."""
        return Rotary(self.phase, self.odd)

    def data(self, split: Split) -> Table:
        """64 rows, of 8 features."""
        x = torch.randn(64, 8, generator=torch.Generator().manual_seed(3 + (split == "train")))
        return Table({"x": x, "y": x[:, :3].prod(1)})

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Sum:
        """Squared error."""
        return (model(batch["x"]) - batch["y"]).square().sum(), len(batch["x"])


def tree(**knobs: Any) -> dict[str, Any]:
    """A run file of 8 steps."""
    return {
        "recipe": {"use": f"{__file__}:Turned", **knobs},
        "batch": {"reference": 8, "total": 8},
        "optim": {"name": "adamw", "lr": 0.02},
        "scaling": {"rule": "none"},
        "schedule": {"samples": 64},
        "watch": {"wandb": "off", "every_steps": 1},
    }


def trained(folder: Path | None = None, stop: int | None = None, **sections: Any) -> tuple[list[float], float | None]:
    """(the losses of the steps, that of the last evaluation) of a run in this process."""
    c = decode(tree() | sections | {"run": {"stop_after_steps": stop}})
    events = list(train(c, plan(c, World(1, device="cpu"), 64), cpu=True, folder=folder))
    found = [e.metrics["eval/loss"] for e in events if isinstance(e, Evaluated)]
    return [e.metrics["train/loss"] for e in events if isinstance(e, Stepped)], found[-1] if found else None


def by_hand(model: nn.Module, planned: Plan, dtype: torch.dtype, samples: list[Tensor]) -> list[float]:
    """The losses of a plain loop over the batches `samples` of row numbers: no engine."""
    recipe, losses = Turned(), []
    groups: list[dict[str, Any]] = [{"params": [p for p in model.parameters() if (p.ndim >= 2) == wide]} for wide in (True, False)]
    groups[1] |= {"weight_decay": 0.0}
    optimizer = torch.optim.AdamW(groups, lr=planned.target_lr, weight_decay=planned.weight_decay)
    data = recipe.data("train")
    for step, rows in enumerate(samples):
        batch = {name: column.to(dtype) for name, column in data.take(rows).items()}
        for group in optimizer.param_groups:
            group["lr"] = planned.lr(step)
        total, count = recipe.loss(model, batch)
        optimizer.zero_grad()
        (total / count).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(total.detach() / count))
    return losses


@pytest.mark.parametrize(("phase", "precision"), [(False, "fp32"), (True, "fp32"), (False, "fp64"), (True, "fp64")])
def test_complex_buffers_and_weights_train_as_by_hand(phase: bool, precision: str) -> None:
    knobs = {"recipe": tree(phase=phase)["recipe"], "precision": precision}
    found, _ = trained(None, **knobs)
    c = decode(tree() | knobs)
    order = torch.from_numpy(Order(64, derive(c.run.seed, ORDER)).take(0, 64).astype("int64")).view(-1, 8)
    torch.manual_seed(0)
    engine = open_engine(c, plan(c, World(1, device="cpu"), 64), Turned(phase=phase), cpu=True)
    dtype = torch.float64 if precision == "fp64" else torch.float32
    model = Rotary(phase, odd=False)
    if dtype == torch.float64:
        model = model.double()
        if phase:
            model.turn.data = model.turn.data.to(torch.complex128)
    model.load_state_dict(engine.model.state_dict())
    assert found == pytest.approx(by_hand(model, engine.plan, dtype, list(order)), rel=1e-6 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_every_type_is_saved_and_comes_back(tmp_path: Path, precision: str) -> None:
    knobs = {"recipe": tree(phase=True, odd=True)["recipe"], "precision": precision}
    wide = {"c64": torch.complex128, "c128": torch.complex128, "scalar": torch.float64}
    cast = wide if precision == "fp64" else {"c128": torch.complex64}
    whole, last = trained(tmp_path / "whole", **knobs)
    first, _ = trained(tmp_path / "half", 4, **knobs)
    then, again = trained(tmp_path / "half", **knobs)
    assert first + then == whole
    assert again == last
    found, _ = newest(str(tmp_path / "half" / "checkpoints"))
    assert found is not None
    for name, made in ODD.items():
        tensor = made.to(cast.get(name, made.dtype))
        kept = found.tensors.whole(f"model/{name}")
        assert kept.dtype == tensor.dtype
        assert torch.equal(kept.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), name
    assert found.tensors.whole("optimizer/turn/exp_avg").is_complex()


class Quantised(nn.Linear):
    """Has a tensor that no checkpoint can hold."""

    def __init__(self) -> None:
        super().__init__(8, 1)
        self.register_buffer("narrow", torch.zeros(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2))


@dataclass(frozen=True)
class Unsavable(Turned):
    """A model with a tensor of a type that no checkpoint can hold."""

    def model(self) -> nn.Module:
        """See Quantised."""
        return Quantised()


@pytest.mark.skipif(torch.__version__ < "2.10", reason="this torch cannot copy such a tensor at all")
def test_a_type_that_checkpoints_lack_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"the model's narrow has the type torch.float4_e2m1fn_x2, for which checkpoints have no name"
    ):
        trained(tmp_path, recipe={"use": f"{__file__}:Unsavable"})


@pytest.mark.parametrize(
    ("cast", "same"),
    [(cast_model, True), (lambda model, dtype, device=None: model.to(device, dtype), False)],
    ids=["ours", "faulty"],
)
@pytest.mark.filterwarnings("ignore:.*discards the imaginary part")
def test_verify_does_not_share_the_engines_set_up(
    monkeypatch: pytest.MonkeyPatch, cast: Callable[..., nn.Module], same: bool
) -> None:
    monkeypatch.setattr(copies, "cast_model", cast)
    found = verify(decode(tree()), World(1, device="cpu"), cpu=True)
    assert ([f.what for f in found if f.verdict == "differs"] == []) == same


def test_frozen_weights_keep_their_type_and_ties_stay() -> None:
    model = nn.ModuleDict({"base": nn.Linear(2, 2).bfloat16(), "head": nn.Linear(2, 2).bfloat16(), "plain": nn.BatchNorm1d(2)})
    model["tied"] = nn.Linear(2, 2)
    model["tied"].weight = model["head"].weight
    model["base"].requires_grad_(False)
    model["base"].register_buffer("scale", torch.ones(2, dtype=torch.bfloat16))
    cast_model(model, torch.float32)
    types = {name: t.dtype for name, t in [*model.named_parameters(), *model.named_buffers()]}
    assert types["base.weight"] == types["base.scale"] == torch.bfloat16
    assert types["head.weight"] == types["plain.weight"] == torch.float32
    assert types["plain.num_batches_tracked"] == torch.int64
    assert model["tied"].weight is model["head"].weight
    cast_model(model, torch.float64)
    assert {t.dtype for t in model.state_dict().values()} == {torch.float64, torch.int64}
