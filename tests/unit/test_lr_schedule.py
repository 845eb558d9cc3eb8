"""The learning rate is a function of samples: one sample, one rate, whatever the batch; finite, and not zero at the start."""

import math
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.config.errors import UserError
from harness.config.loader import decode
from harness.plan.lr_schedule import Schedule, Shape
from harness.plan.plan import plan
from harness.plan.plateau import Plateau
from harness.plan.world import World

SHAPES: tuple[Shape, ...] = get_args(Shape)
WARM, END = 1000, 10_000


def of(shape: Shape, **changes: Any) -> Schedule:
    """A schedule of each shape from 0.1 to 0.8, warm at 1000 of 10000 samples."""
    values: dict[str, Any] = {"start": 0.1, "peak": 0.8, "warmup": WARM, "horizon": END, "milestones": (3000, 6000), "every": 3000}
    return Schedule(shape=shape, **(values | changes))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_starts_at_the_reference_rate_and_is_at_its_peak_after_the_warmup(shape: Shape) -> None:
    assert of(shape).lr(0, 10) == pytest.approx(0.1)
    assert of(shape).lr(WARM, 10) == pytest.approx(0.8)
    assert of(shape, warmup=0, start=0.8).lr(1, 10) == pytest.approx(0.8, rel=1e-3) or shape == "inverse_sqrt"


@pytest.mark.parametrize(
    ("shape", "change", "factor"),
    [
        ("constant", {}, 1.0),
        ("plateau", {}, 1.0),
        ("linear", {}, 0.0),
        ("linear", {"final_fraction": 0.25}, 0.25),
        ("cosine", {}, 0.0),
        ("cosine", {"final_fraction": 0.1}, 0.1),
        ("step", {}, 0.01),
        ("step", {"gamma": 0.5}, 0.25),
        ("exponential", {}, 0.1**3),
        ("exponential", {"gamma": 0.5, "every": 9000}, 0.5),
        ("inverse_sqrt", {}, math.sqrt(WARM / END)),
        ("wsd", {}, 0.0),
        ("wsd", {"final_fraction": 0.3}, 0.3),
    ],
)
def test_every_shape_ends_where_its_formula_says(shape: Shape, change: dict[str, float], factor: float) -> None:
    assert of(shape, **change).lr(END, 10) == pytest.approx(0.8 * factor, abs=1e-12)


@pytest.mark.parametrize(
    ("shape", "at", "factor"),
    [
        ("linear", 5500, 0.5),
        ("cosine", 5500, 0.5),
        ("cosine", WARM + 3000, (1 + math.cos(math.pi / 3)) / 2),
        ("exponential", 2500, 0.1**0.5),
        ("inverse_sqrt", 4000, 0.5),
        ("wsd", 7999, 1.0),
        ("wsd", 9000, 0.5),
    ],
)
def test_every_curve_is_right_on_its_way(shape: Shape, at: int, factor: float) -> None:
    assert of(shape).lr(at, 10) == pytest.approx(0.8 * factor)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("k", [2, 5, 10])
def test_the_rate_at_a_sample_does_not_depend_on_the_batch(shape: Shape, k: int) -> None:
    for samples in range(0, END, 10 * k):
        assert of(shape).lr(samples, 10) == of(shape).lr(samples, 10 * k)


@pytest.mark.parametrize("start", [0.0, 0.1])
def test_the_warmup_is_one_equal_increment_per_step(start: float) -> None:
    rates = [of("constant", start=start).lr(s, 50) for s in range(0, WARM + 1, 50)]
    rises = [b - a for a, b in pairwise(rates)]
    if start == 0:
        assert rates[0] == pytest.approx(0.8 / 20)
        assert rises.pop() == pytest.approx(0), "the last step of the warm-up is already at the peak"
    assert rises == pytest.approx([(0.8 - start) / 20] * len(rises))


@given(batch=st.integers(1, 5000), warmup=st.integers(1, 5000))
def test_a_warmup_from_zero_never_applies_a_rate_of_zero(batch: int, warmup: int) -> None:
    assert of("constant", start=0.0, warmup=warmup).lr(0, batch) > 0


def test_a_milestone_drops_the_rate_at_its_sample_and_not_before() -> None:
    rates = [of("step").lr(s, 10) for s in (2999, 3000, 5999, 6000, 9999)]
    assert rates == pytest.approx([0.8, 0.08, 0.08, 0.008, 0.008])


def test_goyal_imagenet_milestones_are_counted_from_the_start_not_from_the_warmups_end() -> None:
    epoch = 1_281_167
    made = Schedule("step", 0.1, 3.2, 5 * epoch, 90 * epoch, (30 * epoch, 60 * epoch, 80 * epoch))
    assert [made.lr(e * epoch, 8192) for e in (29, 30, 60, 80)] == pytest.approx([3.2, 0.32, 0.032, 0.0032])


@given(
    shape=st.sampled_from(SHAPES),
    from_zero=st.booleans(),
    peak=st.floats(1e-8, 1e3),
    ratio=st.floats(0.01, 1),
    warmup=st.integers(1, 10**9),
    rest=st.integers(1, 10**10),
    batch=st.integers(1, 10**7),
    at=st.floats(0, 1),
    final=st.floats(0, 1),
    decay=st.floats(0.01, 1),
    gamma=st.floats(0.01, 0.99),
)
def test_every_rate_is_finite_and_between_zero_and_the_peak(
    shape: Shape,
    from_zero: bool,
    peak: float,
    ratio: float,
    warmup: int,
    rest: int,
    batch: int,
    at: float,
    final: float,
    decay: float,
    gamma: float,
) -> None:
    horizon = warmup + rest
    made = Schedule(
        shape=shape,
        start=0.0 if from_zero else peak * ratio,
        peak=peak,
        warmup=warmup,
        horizon=horizon,
        milestones=(horizon // 3, horizon // 2),
        gamma=gamma,
        every=max(horizon // 10, 1),
        decay_fraction=decay,
        final_fraction=final,
    )
    samples = int(at * (horizon - 1))
    rate = made.lr(samples, batch)
    assert math.isfinite(rate)
    assert 0 <= rate <= peak * (1 + 1e-9)
    if samples < warmup or shape in ("constant", "step", "plateau", "inverse_sqrt", "exponential") or final > 0:
        assert rate > 0


@given(shape=st.sampled_from(SHAPES), first=st.integers(WARM, END), second=st.integers(WARM, END))
def test_no_shape_rises_after_the_warmup(shape: Shape, first: int, second: int) -> None:
    early, late = sorted((first, second))
    assert of(shape).factor(late) <= of(shape).factor(early) + 1e-12


def after(state: Plateau, loss: float, samples: int, patience: int = 100, gamma: float = 0.1, floor: float = 0.0) -> Plateau:
    """One evaluation."""
    return state.after(loss, samples, patience=patience, gamma=gamma, floor=floor)


def test_a_plateau_lowers_the_rate_once_per_patience_without_improvement() -> None:
    state = Plateau()
    factors = []
    for samples, loss in [
        (50, 1.0),
        (100, 0.5),
        (150, 0.6),
        (199, 0.5),
        (200, 0.5),
        (250, 0.7),
        (300, 0.5),
        (350, 0.4),
        (449, 0.4),
    ]:
        state = after(state, loss, samples)
        factors.append(state.factor)
    assert factors == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.01])
    assert (state.best, state.best_at) == (0.4, 350)


def test_a_plateau_never_goes_under_its_floor() -> None:
    state = after(Plateau(), 1.0, 0)
    for samples in range(100, 1000, 100):
        state = after(state, 1.0, samples, floor=0.05)
    assert state.factor == 0.05


def test_a_loss_that_is_not_a_number_never_counts_as_better() -> None:
    state = after(after(Plateau(), 1.0, 10), math.nan, 60)
    assert (state.best, state.best_at, state.factor) == (1.0, 10, 1.0)
    assert after(state, math.nan, 110).factor == pytest.approx(0.1)


def test_a_first_loss_that_is_not_a_number_is_beaten_by_any_other() -> None:
    state = after(after(Plateau(), math.nan, 10), 5.0, 20)
    assert (state.best, state.best_at) == (5.0, 20)


def test_gains_too_small_to_matter_lower_the_rate_as_in_torch() -> None:
    """ReduceLROnPlateau (mode min, threshold 1e-4 relative) beside ours, its patience in evaluations of 100 samples."""
    import torch

    rng, loss = np.random.default_rng(0), 2.0
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=2)
    ours, rates = Plateau(), []
    for number in range(60):
        loss -= loss * (1e-5 if number % 20 else 0.05 * float(rng.random()))
        theirs.step(loss)
        ours = after(ours, loss, 100 * number, patience=300, gamma=0.5)
        rates.append((ours.factor, optimizer.param_groups[0]["lr"]))
    assert rates[-1][0] < 0.01, "gains of 1e-5 are none"
    assert [a for a, _ in rates] == pytest.approx([b for _, b in rates])


@pytest.mark.parametrize(("best", "better", "no_better"), [(2.0, 1.97, 1.99), (-2.0, -2.03, -2.01), (0.0, -1e-12, 0.0)])
def test_a_threshold_is_a_share_of_the_best_so_far(best: float, better: float, no_better: float) -> None:
    state = after(Plateau(), best, 0)
    assert state.after(better, 50, patience=100, gamma=0.1, floor=0.0, threshold=0.01).best == better
    assert state.after(no_better, 50, patience=100, gamma=0.1, floor=0.0, threshold=0.01).best == best
    assert state.after(best - 1e-9, 50, patience=100, gamma=0.1, floor=0.0, threshold=0.0).best == best - 1e-9


@given(
    shape=st.sampled_from([s for s in SHAPES if s != "step"]),
    warmup=st.integers(1, 90),
    decay=st.floats(0.05, 1),
    from_zero=st.booleans(),
)
def test_no_plan_has_a_rate_that_jumps(shape: Shape, warmup: int, decay: float, from_zero: bool) -> None:
    """Steps of 1 sample in a run of 1,000: the rate moves by little from each to the next, or the plan is refused."""
    tree: dict[str, Any] = {
        "batch": {"reference": 1, "total": 1},
        "optim": {"lr": 0.1},
        "scaling": {"warmup_fraction": warmup / 100, "warmup_from": "zero" if from_zero else "reference"},
        "schedule": {"samples": 1000, "shape": shape},
    }
    tree["schedule"] |= {"every": 500} if shape in ("exponential", "plateau") else {}
    tree["schedule"] |= {"decay_fraction": decay} if shape == "wsd" else {}
    if shape == "wsd" and 1000 * (1 - decay) < 10 * warmup:
        with pytest.raises(UserError, match=r"schedule\.decay_fraction"):
            plan(decode(tree), World(1))
    else:
        made = plan(decode(tree), World(1))
        rates = [made.lr(step) for step in range(1000)]
        assert max(abs(b - a) for a, b in pairwise(rates)) < 0.1 * max(0.1, 1 / (10 * warmup), 1 / (1000 * decay)) * 1.01
