"""Adam whose second moment is of chunks: what it is, that no world changes it, and that what cannot have it is refused."""

from typing import Any

import pytest
import torch

from harness.config.errors import UserError
from harness.config.loader import decode
from harness.config.schema import Config
from harness.data.feed import Micro, Table
from harness.data.sample_order import Chunk
from harness.engine.factory import open_engine
from harness.engine.training_engine import TrainingEngine
from harness.plan.plan import plan
from harness.plan.world import World
from harness.recipes.base import Recipe, load_recipe

BETA2, EPS, LR, CLIP = 0.9, 1e-3, 0.01, 1e-2


def config(**optim: Any) -> Config:
    """Digits in float64, a batch of 32 in chunks of 8."""
    return decode(
        {
            "recipe": {"use": "digits", "width": 2},
            "batch": {"reference": 8, "total": 32, "micro": 8},
            "optim": {"name": "adamw", "lr": LR, "betas": [0.8, BETA2], "eps": EPS, "second_moment": "chunks"} | optim,
            "scaling": {"rule": "none"},
            "schedule": {"samples": 320},
            "precision": "fp64",
            "watch": {"wandb": "off", "noise_scale": False},
        }
    )


def opened(c: Config) -> tuple[TrainingEngine, Recipe, list[Micro]]:
    """An engine, and the passes of one step: the last is of 5 samples."""
    recipe = load_recipe(c.recipe)
    data = recipe.data("train")
    assert isinstance(data, Table)
    engine = open_engine(c, plan(c, World(1, device="cpu")), recipe, cpu=True)
    assert isinstance(engine, TrainingEngine)
    bounds = [(0, 8), (8, 8), (16, 8), (24, 5)]
    rows = [data.take(torch.arange(at, at + count)) for at, count in bounds]
    batches = [{"image": r["image"].double(), "label": r["label"]} for r in rows]
    return engine, recipe, [Micro(b, Chunk(at, count)) for b, (at, count) in zip(batches, bounds, strict=True)]


@pytest.mark.parametrize("clip", [None, CLIP])
def test_the_second_moment_is_the_mean_of_the_chunks_squares(clip: float | None) -> None:
    engine, recipe, micros = opened(config(clip=clip))
    parameters = list(engine.model.parameters())
    means = []
    for micro in micros:
        total, count = recipe.loss(engine.model, micro.batch)
        means.append([g / count for g in torch.autograd.grad(total, parameters)])
    shares = [8 / 29, 8 / 29, 8 / 29, 5 / 29]
    mean = [sum(w * g for w, g in zip(shares, gs, strict=True)) for gs in zip(*means, strict=True)]
    factor = 1.0 if clip is None else clip / float(torch.cat([torch.as_tensor(g).reshape(-1) for g in mean]).norm())
    before = [p.detach().clone() for p in parameters]
    engine.step(micros, LR, stop=False)
    for p, was, g, gs in zip(parameters, before, mean, zip(*means, strict=True), strict=True):
        square = factor**2 * sum(w * one**2 for w, one in zip(shares, gs, strict=True))
        state = engine.optimizer.state[p]
        torch.testing.assert_close(state["exp_avg_sq"], torch.as_tensor((1 - BETA2) * square), rtol=1e-4, atol=1e-12)
        moved = -LR * factor * g / (torch.as_tensor(square).sqrt() + EPS)
        torch.testing.assert_close(p.detach() - was, torch.as_tensor(moved), rtol=1e-3, atol=1e-9)


def test_a_step_that_is_not_finite_leaves_weights_and_moments_alone() -> None:
    engine, _, micros = opened(config())
    engine.step(micros, LR, stop=False)
    before = [t.clone() for p in engine.model.parameters() for t in (p.detach(), *engine.optimizer.state[p].values())]
    micros[1].batch["image"][0, 0, 0, 0] = float("nan")
    engine.step(micros, LR, stop=False)
    after = [t for p in engine.model.parameters() for t in (p.detach(), *engine.optimizer.state[p].values())]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    micros[1].batch["image"].fill_(0.5)
    engine.step(micros, LR, stop=False)
    assert all(torch.isfinite(p).all() for p in engine.model.parameters())


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"optim": {"name": "lion", "lr": 0.1, "second_moment": "chunks"}}, "lion is not adam or adamw; leave it out"),
        ({"backend": {"name": "fsdp"}}, "fsdp adds up ranks' gradients within a pass; .* backend.name: ddp"),
        ({"batch": {"reference": 8, "total": 32}}, "batch.micro is auto, so that a chunk depends on the world"),
        ({"batch": {"reference": 8, "total": 8, "micro": 16}}, "chunks of 16 samples, but 1 ranks have 8 a step"),
        ({"precision": "fp16"}, "squares of scaled gradients overflow"),
    ],
)
def test_what_cannot_have_chunks_is_refused(over: dict[str, Any], says: str) -> None:
    tree = {
        "batch": {"reference": 8, "total": 32, "micro": 8},
        "optim": {"name": "adamw", "lr": LR, "second_moment": "chunks"},
        "schedule": {"samples": 320},
    }
    with pytest.raises(UserError, match=f"optim.second_moment: is (chunks, but )?{says}"):
        plan(decode(tree | over), World(1, device="gpu" if "precision" in over else "cpu"))
