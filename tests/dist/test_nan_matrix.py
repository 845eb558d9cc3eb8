"""A value that is not finite, on any rank, in input, loss or gradient, on every backend: nothing moves anywhere."""

import json
from typing import Any

import pytest

from harness.telemetry.events import Stepped, Windowed
from tests.dist.workers.nan_matrix import LIMIT, LR
from tests.support.processes import run_ranks
from tests.unit.test_loop import config, run

BACKENDS = ("ddp", "fsdp", "zero0", "zero1", "zero2", "zero3")
ENOUGH = 12
"""Two ranks, three places, NaN and infinity."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two ranks found, by backend."""
    folder = tmp_path_factory.mktemp("nan")
    run_ranks(2, ["tests.dist.workers.nan_matrix", str(folder), ",".join(BACKENDS)], folder)
    tree: dict[str, Any] = json.loads((folder / "nan.json").read_text())
    return tree


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_weight_and_no_moment_moves_and_the_next_step_is_a_good_one(found: dict[str, Any], backend: str) -> None:
    cases = found[backend]["matrix"]
    assert len(cases) == ENOUGH
    for name, case in cases.items():
        assert case["applied"] == [0, 1], name
        assert case["bad"] == [True, False], name
        assert case["moved"] == [], name
        assert case["not finite"] == [], name
        assert not case["stuck"], name


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_limit_on_the_gradient_clips_or_leaves_out(found: dict[str, Any], backend: str) -> None:
    limit = found[backend]["limit"]
    assert limit["free"] > 2 * LR * LIMIT
    assert limit["clipped"] == pytest.approx(LR * LIMIT, rel=1e-2)
    assert limit["spared"] == 0
    assert limit["factors"][0] == 1
    assert 0 < limit["factors"][1] < 1
    assert limit["bad"] == [False] * len(limit["bad"]), "a step that was left out is not a step that was not finite"


@pytest.mark.slow
def test_ten_thousand_clean_steps_are_all_taken() -> None:
    """The guard at its strictest calls no clean step bad, and leaves none out."""
    events = run(config({"schedule": {"samples": 320_000}, "optim": {"lr": 0.01, "momentum": 0.9}, "guard": {"spike": "clip"}}))
    steps = [e for e in events if isinstance(e, Stepped)]
    last = [e for e in events if isinstance(e, Windowed)][-1].metrics
    assert len(steps) == 10_000
    assert last["stability/skipped_steps"] == last["stability/nonfinite_steps"] == 0
