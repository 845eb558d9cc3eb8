"""Spikes are found, and clean curves are left in peace: 1,000 planted in losses of real runs, also after NaNs."""

import math
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from harness.telemetry.spikes import FLAGGED, LEAST, LEAST_LOG, MEMORY, Spikes
from harness.training.window_report import SPIKE_LEAST

CURVES = dict(np.load(Path(__file__).parents[1] / "golden" / "losses.npz"))
LOSSES = [name for name in CURVES if name.endswith("_loss")]
WINDOW = 10


def flagged(values: list[float], least: float) -> set[int]:
    """Steps that are called spikes, as the loop scores them: window by window."""
    state, found = Spikes(), set()
    for begin in range(0, len(values), WINDOW):
        window = values[begin : begin + WINDOW]
        found |= {begin + n for n, score in enumerate(state.scores(window, least)) if score is not None and score > FLAGGED}
        state = state.after(window, least)
    return found


def least(losses: NDArray[np.float16]) -> float:
    """By how much a spike of this run stands out at least."""
    return float(SPIKE_LEAST * np.median(losses[:3].astype(float)))


def test_one_false_alarm_in_a_hundred_thousand_clean_steps_at_most() -> None:
    steps = sum(len(CURVES[name]) for name in LOSSES)
    assert steps == 100_000
    losses = [flagged(CURVES[name].astype(float).tolist(), least(CURVES[name])) for name in LOSSES]
    norms = [flagged(curve.astype(float).tolist(), 0.0) for name, curve in CURVES.items() if name.endswith("_grad")]
    assert sum(map(len, losses)) <= 1
    assert sum(map(len, norms)) <= 1


@pytest.mark.parametrize("nan", [False, True])
def test_of_a_thousand_planted_spikes_99_percent_are_found(nan: bool) -> None:
    found = 0
    for seed, name in enumerate(LOSSES):
        rng, curve = np.random.default_rng(seed), CURVES[name].astype(float)
        where = rng.choice(np.arange(200, len(curve) - 1), 250, replace=False)
        planted = curve.copy()
        planted[where] += rng.uniform(0.5, 3, 250) * np.median(curve[:3])
        if nan:
            planted[rng.choice(len(curve), 2000, replace=False)] = math.nan
        there = {int(step) for step in where if math.isfinite(planted[step])}
        hits = flagged(planted.tolist(), least(CURVES[name]))
        found += len(hits & there)
        if nan:
            found += 250 - len(there)
        assert len(hits - there) <= 2, "and nothing else is"
    assert found >= 990


def test_a_new_level_is_no_endless_row_of_spikes() -> None:
    rng = np.random.default_rng(0)
    levels = [1 + 0.1 * rng.standard_normal(200), 9 + 0.1 * rng.standard_normal(400)]
    hits = flagged(np.concatenate(levels).tolist(), 0.1)
    assert LEAST <= len(hits) <= LEAST + 2 * WINDOW


def test_the_limit_is_the_value_of_its_score() -> None:
    state = Spikes(tuple(float(x) for x in range(40)))
    limit, beyond = state.limit(6.0), state.beyond()
    assert limit is not None
    assert beyond is not None
    assert state.scores([limit]) == [pytest.approx(6.0)]
    below, above = state.scores([beyond - 1e-6, beyond + 1e-6])
    assert below is not None
    assert above is not None
    assert below <= FLAGGED < above
    assert Spikes().limit(6.0) is None
    assert Spikes((1.0,) * 40).limit(6.0) is None


@given(st.lists(st.integers(-3, 3) | st.integers(-10_000, 10_000), min_size=LEAST, max_size=MEMORY))
def test_scores_are_by_median_and_median_deviation(memory: list[int]) -> None:
    middle = median(memory)
    spread = median([abs(x - middle) for x in memory])
    (score,), _ = Spikes(tuple(map(float, memory))).judged([middle + spread])
    assert score == pytest.approx(0.6745) if spread else not score


@pytest.mark.parametrize("usual", [[2.5] * 40, [2.5 * (1 + n % 3 * 1e-8) for n in range(40)], [0.0] * 40])
def test_rounding_after_values_that_do_not_vary_is_no_spike_and_a_tenth_is(usual: list[float]) -> None:
    state = Spikes(tuple(usual))
    for least in (0.0, LEAST_LOG):
        scores, after = state.judged([usual[0] + 1e-7], least)
        assert scores[0] is None or scores[0] < 0.1
        assert after.count == 0
    (small, jump), after = state.judged([usual[0] + 0.5 * LEAST_LOG, usual[0] + 3.0], LEAST_LOG)
    assert small is not None
    assert jump is not None
    assert small == pytest.approx(FLAGGED / 2)
    assert FLAGGED < jump < math.inf
    assert after.count == 1
    limit = state.limit(6.0, LEAST_LOG)
    assert limit is None or limit >= usual[0] + LEAST_LOG, "nothing is clipped to a hair above the usual"
