"""Noise scales in the geometry of SGD, Adam, sign descent and Muon, against ones that were planted; and of real runs."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch

from harness.config.errors import UserError
from harness.config.loader import decode
from harness.modeling.noise_geometry import GeometryNoise
from harness.plan.plan import plan
from harness.plan.world import World
from harness.telemetry.events import Evaluated
from harness.training.loop import train

CHUNK, CHUNKS = 8, 4000


@pytest.fixture(scope="module")
def planted() -> tuple[dict[str, float], dict[str, float]]:
    """(measured, planted): a 3 x 4 matrix and a vector, whose samples' gradients have other noise in each element."""
    draw = torch.Generator().manual_seed(3)
    matrix, vector = (torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((3, 4), (5,)))
    left = torch.randn(3, 3, generator=draw, dtype=torch.float64)  # a sample's noise is left @ z, z of unit variance
    spread = torch.rand(5, generator=draw, dtype=torch.float64) + 0.5
    scales = {
        0: torch.rand(3, 4, generator=draw, dtype=torch.float64) + 0.1,
        1: torch.rand(5, generator=draw, dtype=torch.float64) + 0.1,
    }
    found = GeometryNoise([matrix, vector], [0], scales)
    for _ in range(CHUNKS):
        z, w = (torch.randn(shape, generator=draw, dtype=torch.float64) / CHUNK**0.5 for shape in ((3, 4), (5,)))
        found.add([matrix + left @ z, vector + spread * w])
    variances = [(left**2).sum(1, keepdim=True).expand(3, 4), spread**2]
    means = [matrix, vector]
    covariance = 4 * left @ left.T
    truth = {
        "noise_scale": sum(v.sum() for v in variances) / sum((m**2).sum() for m in means),
        "noise_scale_adam": sum((v / scales[n] ** 2).sum() for n, v in enumerate(variances))
        / sum((m**2 / scales[n] ** 2).sum() for n, m in enumerate(means)),
        "noise_scale_sign": (sum(v.sqrt().sum() for v in variances) / sum(m.abs().sum() for m in means)) ** 2,
        "noise_scale_muon": (torch.linalg.eigvalsh(covariance).sqrt().sum() / torch.linalg.svdvals(matrix).sum()) ** 2,
    }
    return found.read(CHUNK, lambda sums: sums), {name: float(value) for name, value in truth.items()}


@pytest.mark.parametrize("name", ["noise_scale", "noise_scale_adam", "noise_scale_sign", "noise_scale_muon"])
def test_a_planted_noise_scale_is_found(planted: tuple[dict[str, float], dict[str, float]], name: str) -> None:
    measured, truth = planted
    assert measured[name] == pytest.approx(truth[name], rel=0.05)


def test_the_planted_noise_scales_differ(planted: tuple[dict[str, float], dict[str, float]]) -> None:
    values = sorted(planted[1].values())
    assert all(b > 1.1 * a for a, b in pairwise(values)), "else one could stand for another"


def test_one_chunk_tells_nothing() -> None:
    found = GeometryNoise([torch.zeros(2)], [], {})
    found.add([torch.ones(2)])
    assert all(math.isnan(value) for value in found.read(4, lambda sums: sums).values())


def config(**over: Any) -> dict[str, Any]:
    """A small language model in one process, a pass a step."""
    return {
        "recipe": {"use": "bytes_lm", "width": 16, "depth": 1, "heads": 2, "context": 16, "max_bytes": 10_000},
        "batch": {"reference": 16, "total": 16},
        "optim": {"name": "adamw", "lr": 0.003},
        "schedule": {"samples": 64},
        "eval": {"every_samples": 64, "noise_scales": 64},
        "watch": {"wandb": "off"},
    } | over


@pytest.mark.parametrize(("optimizer", "more"), [("adamw", {"adam"}), ("muon", {"muon"}), ("sgd", set())])
def test_a_run_of_one_pass_a_step_has_them_at_its_evaluations(optimizer: str, more: set[str]) -> None:
    c = decode(config(optim={"name": optimizer, "lr": 0.003}))
    (told,) = [e.metrics for e in train(c, plan(c, World(1, device="cpu")), cpu=True) if isinstance(e, Evaluated)]
    names = {name for name in told if name.startswith("eval/noise_scale")}
    assert names == {f"eval/noise_scale{one and f'_{one}'}_samples" for one in {"", "sign", *more}}
    assert all((told[name] or 0) > 0 for name in names)


def test_noise_scales_need_whole_weights() -> None:
    with pytest.raises(UserError, match=r"eval.noise_scales: is 64, but fsdp has no rank with whole weights"):
        plan(decode(config(backend={"name": "fsdp"})), World(2, device="cpu"))
