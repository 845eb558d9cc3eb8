"""The noise scale is that of gradients whose covariance is known, and that of one example at a time; NaN does not reach it."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from harness.engine.open import open_engine
from harness.parts.data import Micro, Table
from harness.parts.recipe import load_recipe
from harness.plan.config import RecipeConfig
from harness.plan.decode import decode
from harness.plan.order import Chunk
from harness.plan.plan import plan
from harness.plan.world import World
from harness.stats.noise import NoiseScale
from tests.dist.processes import run_ranks

DIMENSIONS = 200


def synthetic(truth: float, windows: int, small: int, big: int) -> NoiseScale:
    """The scale after windows of ten steps of gradients G + noise, whose covariance has trace `truth` |G|^2."""
    rng = np.random.default_rng(0)
    true = rng.normal(size=DIMENSIONS)
    spread = rng.uniform(0.2, 2.0, DIMENSIONS)
    spread *= math.sqrt(truth * (true @ true)) / np.linalg.norm(spread)
    scale = NoiseScale()
    for _ in range(windows):
        parts = true + rng.normal(size=(10, big // small, DIMENSIONS)) * spread / math.sqrt(small)
        whole = parts.mean(1)
        scale = scale.after(float((parts**2).sum(-1).mean()), small, float((whole**2).sum(-1).mean()), big)
    return scale


@pytest.mark.parametrize(("truth", "small", "big"), [(50.0, 16, 64), (700.0, 64, 512), (5000.0, 32, 4096)])
def test_it_is_the_covariance_s_trace_over_the_gradient_squared(truth: float, small: int, big: int) -> None:
    assert synthetic(truth, 300, small, big).samples == pytest.approx(truth, rel=0.1)


def test_the_first_moment_tells_it_too() -> None:
    """Adam's or SGD's average of gradients, at one batch alone."""
    rng, beta, batch, truth = np.random.default_rng(1), 0.9, 64, 700.0
    true = rng.normal(size=DIMENSIONS)
    deviation = math.sqrt(truth * (true @ true) / DIMENSIONS / batch)
    scale, moment, squares = NoiseScale(), np.zeros(DIMENSIONS), []
    for step in range(1, 3001):
        gradient = true + rng.normal(size=DIMENSIONS) * deviation
        moment = beta * moment + (1 - beta) * gradient
        squares.append(float(gradient @ gradient))
        if step % 10 == 0 and step > 50:
            scale = scale.after_moments(float(np.mean(squares[-10:])), float(moment @ moment), beta, batch)
    assert scale.samples == pytest.approx(truth, rel=0.1)


def test_a_window_that_is_not_finite_is_left_out() -> None:
    scale = synthetic(100.0, 20, 16, 64)
    assert scale.after(math.nan, 16, 1.0, 64) == scale
    assert scale.after(1.0, 16, math.inf, 64) == scale
    assert NoiseScale.from_json(asdict(scale)) == scale


def test_before_the_first_window_nothing_is_claimed() -> None:
    assert NoiseScale().samples is None
    assert NoiseScale().gain(32, 4.0) is None


def test_a_batch_that_is_not_smaller_is_refused() -> None:
    with pytest.raises(ValueError, match="batches 64 and 64 tell nothing"):
        NoiseScale().after(1.0, 64, 1.0, 64)


def test_the_gain_runs_from_1_to_k() -> None:
    """Johnson et al. 2020: all noise, and a larger batch is worth k steps; no noise, and it is worth one."""
    noisy, clear = NoiseScale(1e-9, 1.0, 1.0), NoiseScale(1.0, 1e-9, 1.0)
    assert noisy.gain(32, 8.0) == pytest.approx(8.0, rel=1e-4)
    assert clear.gain(32, 8.0) == pytest.approx(1.0, rel=1e-4)


def test_the_gain_is_k_where_noise_hides_the_gradient() -> None:
    """Estimates below 0 count as 0, as in the paper: late in training the squared gradient is lost in the noise of its estimate."""
    assert NoiseScale(-0.01, 1.0, 1.0).gain(32, 8.0) == 8.0
    assert NoiseScale(1.0, -0.01, 1.0).gain(32, 8.0) == 1.0
    assert NoiseScale(-0.01, -0.01, 1.0).gain(32, 8.0) is None


def test_the_engine_s_sums_are_those_of_one_example_at_a_time() -> None:
    """Over one epoch at fixed weights the mean small and big squares give the trace that per-example gradients have."""
    c = decode(
        {
            "recipe": {"use": "digits", "width": 4},
            "batch": {"reference": 256, "total": 256, "micro": 16},
            "optim": {"lr": 1e-30},
            "schedule": {"samples": 256 * 60},
            "watch": {"wandb": "off", "every_steps": 60},
        }
    )
    recipe = load_recipe(RecipeConfig(use="digits", knobs={"width": 4}))
    engine = open_engine(c, plan(c, World(1, device="cpu")), recipe, cpu=True)
    data = recipe.data("train")
    assert isinstance(data, Table)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        rows = torch.randint(len(data), (256,), generator=generator)
        engine.step([Micro(data.take(part), Chunk(0, 16)) for part in torch.split(rows, 16)], 1e-30, False)
    sums = engine.read().noise
    assert (engine.estimator, sums.steps) == ("passes", 60)
    scale = NoiseScale().after(sums.small_square / 60, 16, sums.big_square / 60, 256)
    assert scale.samples == pytest.approx(_brute_force(engine.model, data), rel=0.1)


def _brute_force(model: nn.Module, data: Table) -> float:
    """Trace of the covariance of per-example gradients over the square of their mean."""
    params = dict(model.named_parameters())

    def loss(p: dict[str, torch.Tensor], image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(torch.func.functional_call(model, p, image[None]), label[None])

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    gradients = each({n: p.detach() for n, p in params.items()}, data.columns["image"], data.columns["label"])
    flat = torch.cat([g.flatten(1) for g in gradients.values()], 1).double()
    mean = flat.mean(0)
    return float((flat - mean).square().sum(1).mean() / mean.square().sum())


def test_ranks_measure_one_step_in_four_and_all_where_the_run_follows(tmp_path: Path) -> None:
    found = json.loads(run_ranks(2, ["tests.dist.measuring"], tmp_path).splitlines()[-1])
    assert found == {"none": ["ranks", 2], "adascale": ["ranks", 8]}
