"""The noise scale is that of gradients whose covariance is known, and that of one example at a time; NaN does not reach it."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from harness.checkpoint.train_state import State
from harness.config.loader import decode
from harness.config.schema import RecipeConfig
from harness.data.feed import Micro, Table
from harness.data.sample_order import Chunk
from harness.distributed.process_group import leave
from harness.engine.factory import open_engine
from harness.modeling.noise_meter import PassNoise
from harness.plan.plan import plan
from harness.plan.scaling_rules import adascale_gain
from harness.plan.world import World
from harness.recipes.base import load_recipe
from harness.telemetry.events import Windowed
from harness.telemetry.noise_scale import NoiseScale
from harness.training.loop import train
from harness.training.resume import same_scale
from tests.dist.workers.planted_noise import Quadratic, Slope, scale_of
from tests.support.processes import ROOT, run_ranks

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
    with pytest.raises(ValueError, match="batches 64 and 64 give no noise scale"):
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
    scale = NoiseScale().after(sums.small_square * 16**2 / 60, 16, sums.big_square / 60, 256)
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
    found = json.loads(run_ranks(2, ["tests.dist.workers.measuring"], tmp_path).splitlines()[-1])
    assert found == {"none": ["ranks", 2], "adascale": ["ranks", 8]}


UNEVEN = [Quadratic(size=200, own=0.5), Quadratic(size=200, own=0.1, shared=0.3), Quadratic(size=200, own=0.1, shared=0.1)]
"""Samples of 1 to 9 items: each with noise of its own, or with noise that a sample's items share, which grows with their count."""


@pytest.mark.parametrize("micro", [1, 2, 8])
@pytest.mark.parametrize("recipe", UNEVEN)
def test_passes_of_uneven_counts_tell_it_too(recipe: Quadratic, micro: int) -> None:
    """And so does the gain of AdaScale, which is made of it."""
    estimator, scale = scale_of(recipe, World(1, device="cpu"), 16, micro, 400)
    assert estimator == "passes"
    assert scale.samples == pytest.approx(recipe.truth(), rel=0.15)
    assert scale.gain(2, 8.0) == pytest.approx(adascale_gain(recipe.truth(), 2, 8.0), rel=0.05)


def test_ranks_of_uneven_counts_tell_it_too(tmp_path: Path) -> None:
    """Few samples on each of two ranks, more on each, and passes on each."""
    found = json.loads(run_ranks(2, ["tests.dist.workers.planted_noise"], tmp_path).splitlines()[-1])
    assert [case["case"] for case in found] == [["ranks", 2, 4], ["ranks", 8, 16], ["passes", 1, 8]]
    assert [case["measured"] for case in found] == [pytest.approx(case["true"], rel=0.15) for case in found]


def test_passes_of_uneven_counts_in_a_loop_of_one_s_own() -> None:
    """Each loss is divided by the step's count. Without the counts of passes their spread, 0.26 samples, is taken for noise."""
    recipe = UNEVEN[2]
    model, data, generator = recipe.model(), recipe.data("train"), torch.Generator().manual_seed(0)
    known, unknown = (PassNoise(model.parameters(), micro=1, passes=4) for _ in range(2))
    for _ in range(1000):
        rows = torch.randint(len(data), (4, 1), generator=generator)
        count = data.take(rows.flatten())["count"].sum()
        model.zero_grad()
        for row in rows:
            loss, items = recipe.loss(model, data.take(row))
            (loss / count).backward()  # type: ignore[no-untyped-call]
            known.passed(items)
            unknown.passed()
        known.stepped()
        unknown.stepped()
    assert known.read().samples == pytest.approx(recipe.truth(), rel=0.05)
    assert unknown.read().samples == pytest.approx(recipe.truth() + 0.26, rel=0.05)


def slope(optimizer: str, backend: str, decay: float, **sections: object) -> dict[str, object]:
    """The run file of a recipe whose gradient is nearly that of its decay, and whose noise scale is known."""
    return {
        "recipe": {"use": f"{ROOT}/tests/dist/workers/planted_noise.py:Slope"},
        "batch": {"reference": 32, "total": 32},
        "optim": {"name": optimizer, "lr": 1e-9, "weight_decay": decay} | ({"momentum": 0.9} if optimizer == "sgd" else {}),
        "backend": {"name": backend},
        "scaling": {"warmup_epochs": 0},
        "schedule": {"samples": 16_000, "shape": "constant"},
        "watch": {"wandb": "off"},
    } | sections


def check_moments(metrics: Iterable[Mapping[str, Any]]) -> None:
    """The moments tell the recipe's scale, in their own curve alone."""
    found = [(m["batch/noise_scale_moments_samples"], m["batch/noise_scale_samples"]) for m in metrics]
    assert {other for _, other in found} == {None}
    assert found[-1][0] == pytest.approx(Slope().scale, rel=0.15)


@pytest.mark.parametrize(
    ("optimizer", "backend", "decay"),
    [
        ("sgd", "ddp", 1e-4),
        ("sgd", "ddp", 1e-3),
        ("adam", "ddp", 5e-4),
        ("adamw", "ddp", 5e-4),
        ("sgd", "fsdp", 1e-3),
    ],
)
def test_coupled_decay_is_no_gradient(optimizer: str, backend: str, decay: float) -> None:
    """The moment of SGD and Adam holds decay x weights too, here 0.1 to 1 times the gradient; AdamW's does not.

    At 1 times it gradient and decay have a difference as long as the gradient: what is taken away in error would not be seen.
    """
    c = decode(slope(optimizer, backend, decay))
    events = list(train(c, plan(c, World(1, device="cpu")), cpu=True))
    leave()  # fsdp has made a group, and other tests in this process make their own
    check_moments(e.metrics for e in events if isinstance(e, Windowed))


def test_a_momentum_that_floats_do_not_tell_from_none_measures_nothing() -> None:
    """1 - 1e-17 is 1: the estimator divided by nothing."""
    tree = slope("sgd", "ddp", 0.0, schedule={"samples": 320, "shape": "constant"})
    c = decode(tree | {"optim": {"name": "sgd", "lr": 1e-9, "momentum": 1e-17}})
    found = [e.metrics for e in train(c, plan(c, World(1, device="cpu")), cpu=True) if isinstance(e, Windowed)]
    assert {m["batch/noise_scale_moments_samples"] for m in found} == {None}


def test_coupled_decay_is_no_gradient_in_shards_either(tmp_path: Path) -> None:
    """zero3 gives two ranks a part each of weights and moments, the last of them padded."""
    run = tmp_path / "run.yaml"
    run.write_text(json.dumps(slope("sgd", "zero3", 1e-3, run={"dir": str(tmp_path / "run")})))
    run_ranks(2, ["harness", str(run)], tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    check_moments(line for line in lines if line["event"] == "window")


def test_a_resume_with_another_estimator_measures_anew() -> None:
    """2 ranks measured 44 samples; one rank went on from there by moments, which read 16,600."""
    scale = NoiseScale(1.0, 44.0, 0.9)
    for before, now, kept in (
        ("ranks", "passes", True),
        ("ranks", "moments", False),
        ("moments", "passes", False),
        ("", "moments", True),
    ):
        state = same_scale(State(noise=scale, noise_by=before), now)
        assert (state.noise == scale, state.noise_by) == (kept, now), (before, now)
