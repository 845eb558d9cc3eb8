"""What large batches want against over-fitting: each knob works, and gives the same run on every layout of ranks."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from harness.config.errors import UserError
from harness.config.loader import decode
from harness.config.schema import RecipeConfig
from harness.data.batch_tree import move
from harness.data.sample_order import keys
from harness.data.seeding import seed_all
from harness.modeling.hessian import largest_eigenvalue
from harness.plan.plan import plan
from harness.plan.world import World
from harness.recipes.base import Recipe, load_recipe
from harness.recipes.sample_random import depth_rate, survival
from harness.telemetry.events import Evaluated, Stepped
from harness.training.loop import train
from tests.unit.test_images import pictures, write_split

KEYS = torch.from_numpy(keys(1, 0, 4000))


@pytest.fixture(scope="module")
def knobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """A small net of each recipe."""
    root = tmp_path_factory.mktemp("data")
    write_split(root, "train", *pictures(96, 0))
    write_split(root, "t10k", *pictures(30, 1))
    (root / "text.py").write_text("".join(chr(97 + n * n % 23) for n in range(4000)))
    small = {"net": "resnet8", "width": 8, "norm": "none"}
    (root / "mixed.py").write_text(MIXED)
    return {
        "digits": {"use": "digits", "width": 4},
        "images": {"use": "images", "root": str(root)} | small,
        "own": {"use": f"{root / 'mixed.py'}:Mixed", "width": 4},
        "bytes_lm": {"use": "bytes_lm", "files": str(root / "text.py"), "width": 16, "depth": 2, "heads": 2, "context": 16},
    }


def recipe(tree: dict[str, Any]) -> Recipe:
    """The recipe of a section of the run file."""
    return load_recipe(RecipeConfig(use=tree["use"], knobs={k: v for k, v in tree.items() if k != "use"}))


def told(tree: dict[str, Any], world: int, micro: int, **optim: Any) -> tuple[list[float], list[float]]:
    """Losses of six steps at batch 32 in float64, and of the evaluation, simulated on one process."""
    sections: dict[str, Any] = {
        "recipe": tree,
        "batch": {"reference": 32, "total": 32, "micro": micro},
        "optim": {"lr": 0.05} | optim,
        "schedule": {"samples": 192},
        "precision": "fp64",
        "watch": {"wandb": "off"},
    }
    c = decode(sections)
    events = list(train(c, plan(c, World(world, 1, "cpu", 1)), cpu=True))
    steps = [e.metrics["train/loss"] for e in events if isinstance(e, Stepped)]
    return steps, [e.metrics["eval/loss"] or 0.0 for e in events if isinstance(e, Evaluated)]


MIXED = """
from dataclasses import dataclass
from functools import partial
from typing import ClassVar
from torch.nn.functional import cross_entropy
from harness.recipes.mixup import mixed_loss
from harness.recipes.digits import Digits

@dataclass(frozen=True)
class Mixed(Digits):
    augments: ClassVar[bool] = True
    mixup: float = 0.0

    def loss(self, model, batch):
        if not (model.training and self.mixup):
            return super().loss(model, batch)
        each = partial(cross_entropy, reduction="none")
        return mixed_loss(batch["key"], self.mixup, batch["image"], batch["label"], model, each), len(batch["label"])
"""
"""A recipe of somebody's own, of float inputs with class labels."""
CASES = [
    ("own", {"mixup": 0.4}),
    ("digits", {"label_smoothing": 0.1}),
    ("digits", {"dropout": 0.3}),
    ("images", {"stochastic_depth": 0.5, "label_smoothing": 0.1}),
    ("images", {"mixup": 0.4, "dropout": 0.2}),
    ("bytes_lm", {"stochastic_depth": 0.5}),
    ("bytes_lm", {"dropout": 0.2, "label_smoothing": 0.1}),
]


@pytest.mark.parametrize(("name", "knob"), CASES)
def test_a_regulariser_changes_the_run_and_not_with_the_ranks(
    knobs: dict[str, dict[str, Any]], name: str, knob: dict[str, float]
) -> None:
    plain, ours = knobs[name], knobs[name] | knob
    one, four = told(ours, 1, 8), told(ours, 4, 8)
    assert four[0] == pytest.approx(one[0], rel=1e-10)
    assert four[1] == pytest.approx(one[1], rel=1e-10)
    assert one[0][0] != pytest.approx(told(plain, 1, 8)[0][0], rel=1e-6)


@pytest.mark.parametrize("name", ["images", "bytes_lm"])
def test_stochastic_depth_hangs_on_the_sample_and_not_on_the_pass_it_is_in(knobs: dict[str, dict[str, Any]], name: str) -> None:
    ours = knobs[name] | {"stochastic_depth": 0.5}
    assert told(ours, 1, 32)[0] == pytest.approx(told(ours, 1, 8)[0], rel=1e-10)


def test_stochastic_depth_keeps_the_mean_and_drops_at_its_rate() -> None:
    for rate in (0.1, 0.5, 0.9):
        kept = survival(KEYS, 3, rate)
        assert float((kept == 0).float().mean()) == pytest.approx(rate, abs=0.03)
        assert float(kept.mean()) == pytest.approx(1, abs=0.2)
        assert sorted(set(kept.tolist())) == pytest.approx([0.0, 1 / (1 - rate)])
    one, other = survival(KEYS, 0, 0.5), survival(KEYS, 1, 0.5)
    assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 0.05
    assert [depth_rate(n, 4, 0.4) for n in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("name", ["images", "bytes_lm"])
def test_nothing_is_left_out_of_an_evaluation(knobs: dict[str, dict[str, Any]], name: str) -> None:
    plain, ours = recipe(knobs[name]), recipe(knobs[name] | {"stochastic_depth": 0.9})
    losses = []
    for one in (plain, ours):
        seed_all(0)
        model = one.model().eval()
        batch = one.data("valid").take(torch.arange(4))  # type: ignore[union-attr]
        with torch.no_grad():
            sums = one.metrics(model, move(batch, torch.device("cpu"), torch.float32))
        losses.append([float(total) for total, _ in sums.values()])
    assert losses[0] == losses[1]


def test_nets_without_residual_blocks_refuse_stochastic_depth(knobs: dict[str, dict[str, Any]]) -> None:
    with pytest.raises(UserError, match=r"recipe.stochastic_depth: is 0.1, but mlp has none of our residual blocks"):
        recipe(knobs["images"] | {"net": "mlp", "width": 8, "stochastic_depth": 0.1}).model()


@pytest.mark.parametrize("name", ["digits", "bytes_lm"])
def test_label_smoothing_is_the_mixture_with_the_uniform_target(knobs: dict[str, dict[str, Any]], name: str) -> None:
    plain, ours = recipe(knobs[name]), recipe(knobs[name] | {"label_smoothing": 0.2})
    seed_all(0)
    model = plain.model().train()
    batch = plain.data("train").take(torch.arange(4))  # type: ignore[union-attr]
    batch["key"] = KEYS[:4]
    if name == "digits":
        logits, label = model(batch["image"]), batch["label"]
    else:
        rows = [
            (model(t[None, :-1].long())[0, : n - 1], t[1:n].long()) for t, n in zip(batch["tokens"], batch["length"], strict=True)
        ]
        logits, label = torch.cat([r[0] for r in rows]), torch.cat([r[1] for r in rows])
    uniform = -logits.log_softmax(-1).mean(-1).sum()
    expected = 0.8 * cross_entropy(logits, label, reduction="sum") + 0.2 * uniform
    total, count = ours.loss(model, batch)
    torch.testing.assert_close(total, expected)
    assert int(count) == len(label)


DECAYING = """
from dataclasses import dataclass
from harness.recipes.digits import Digits

@dataclass(frozen=True)
class Still(Digits):
    def loss(self, model, batch):
        total, count = super().loss(model, batch)
        return 0 * total, count
"""


@pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
def test_weight_decay_by_timescale_forgets_as_fast_at_every_batch(optimizer: str, tmp_path: Path) -> None:
    """Where no gradient moves the weights, k = 8 must shrink them over the same samples as k = 1 does; kept, it does not."""
    (tmp_path / "still.py").write_text(DECAYING)

    def shrunk(total: int, mode: str) -> float:
        tree: dict[str, Any] = {
            "recipe": {"use": f"{tmp_path}/still.py:Still", "width": 4},
            "batch": {"reference": 16, "total": total},
            "optim": {"name": optimizer, "lr": 1e-3, "weight_decay": 0.5},
            "scaling": {"rule": "adam", "weight_decay": mode, "warmup_samples": 0},
            "schedule": {"samples": 16 * 64},
            "watch": {"wandb": "off"},
        }
        c = decode(tree)
        events = list(train(c, plan(c, World(1, device="cpu")), cpu=True, folder=tmp_path / f"{total}-{mode}"))
        assert not any(isinstance(e, Evaluated) and math.isnan(e.metrics["eval/loss"] or 0) for e in events)
        from harness.checkpoint import reader as checkpoint

        found, _ = checkpoint.newest(str(tmp_path / f"{total}-{mode}" / "checkpoints"))
        assert found is not None
        seed_all(0)
        return float(found.tensors.whole("model/6.weight").norm())

    if optimizer == "adamw":
        reference, timescale, kept = shrunk(16, "timescale"), shrunk(128, "timescale"), shrunk(128, "keep")
        assert timescale == pytest.approx(reference, rel=1e-3)
        assert kept > 1.005 * reference
    else:
        assert shrunk(128, "timescale") < shrunk(128, "keep")


def test_sharpness_is_the_largest_eigenvalue_of_the_hessian() -> None:
    """Of least squares the Hessian is 2 X'X / n, whatever the weights are; in two shares as in one."""
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(64, 5)))
    model = nn.Linear(5, 1, bias=False).double()
    exact = float(torch.linalg.eigvalsh(2 * x.T @ x / 64).max())
    params = list(model.parameters())
    whole = largest_eigenvalue([lambda: (model(x) ** 2).sum() / 64], params, lambda t: t)
    parts = largest_eigenvalue(
        [lambda: (model(x[:40]) ** 2).sum() / 64, lambda: (model(x[40:]) ** 2).sum() / 64], params, lambda t: t
    )
    assert whole == pytest.approx(exact, rel=1e-2)
    assert parts == pytest.approx(whole, rel=1e-9)
    downhill = largest_eigenvalue([lambda: -(model(x) ** 2).sum() / 64], params, lambda t: t)
    assert downhill == pytest.approx(-exact, rel=1e-2)
    flat = largest_eigenvalue([lambda: model(x).sum()], params, lambda t: t)
    assert flat == 0


@pytest.mark.parametrize("name", ["digits", "images", "bytes_lm"])
def test_each_recipe_has_a_sharpness(knobs: dict[str, dict[str, Any]], name: str) -> None:
    tree: dict[str, Any] = {
        "recipe": knobs[name],
        "batch": {"reference": 32, "total": 32, "micro": 16},
        "optim": {"lr": 0.05},
        "schedule": {"samples": 64},
        "eval": {"sharpness": 40},
        "watch": {"wandb": "off"},
    }
    c = decode(tree)
    found = [e.metrics["eval/sharpness"] for e in train(c, plan(c, World(1, device="cpu")), cpu=True) if isinstance(e, Evaluated)]
    assert found[0] is not None
    assert math.isfinite(found[0])
    assert found[0] != 0


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"backend": {"name": "fsdp"}}, "eval.sharpness: is 40, but fsdp has no rank with whole weights"),
        ({"compute": {"compile": True}}, "eval.sharpness: is 40, but compiled blocks have no second derivative"),
    ],
)
def test_where_sharpness_cannot_be_had_it_is_refused(section: dict[str, Any], said: str) -> None:
    tree: dict[str, Any] = {"batch": {"reference": 32, "total": 32}, "optim": {"lr": 0.05}, "schedule": {"samples": 64}}
    c = decode(tree | {"eval": {"sharpness": 40}} | section)
    with pytest.raises(UserError, match=said):
        plan(c, World(1, device="cpu"), 1437)
