"""Trouble is seen: divergence, death, erratic steps; and a run that is well is left in peace."""

import json
import math

import msgspec
import numpy as np
import pytest

from harness.telemetry.health import LEVEL, MEMORY, Health


def fed(losses: list[float], ratio: float | None = 1e-3) -> Health:
    """The health after a run of these losses, in windows of ten steps."""
    health = Health()
    for begin in range(0, len(losses), 10):
        health = health.after(losses[begin : begin + 10], ratio)
    return health


def falling(steps: int, seed: int, noise: float = 0.1) -> list[float]:
    """A loss that falls as 1/sqrt(step), with noise."""
    rng = np.random.default_rng(seed)
    return [2 / math.sqrt(1 + t / 50) + noise * float(rng.standard_normal()) for t in range(steps)]


@pytest.mark.parametrize("seed", range(5))
def test_a_run_that_learns_is_never_called_diverging(seed: int) -> None:
    losses, health = falling(5000, seed), Health()
    for begin in range(0, len(losses), 10):
        health = health.after(losses[begin : begin + 10], 1e-3)
        assert not health.diverging
        assert not health.dead(2.0 if begin > 500 else None)
        assert not health.erratic


def test_a_loss_above_its_start_diverges() -> None:
    assert fed([2.0] * LEVEL + [3.0] * LEVEL).diverging
    assert not fed([2.0] * LEVEL + [2.1] * LEVEL).diverging


def test_a_loss_that_gives_up_half_of_what_it_had_won_diverges() -> None:
    won = falling(1000, 0)
    lost = [1.6 + x - y for x, y in zip(falling(30, 1), falling(30, 1, noise=0), strict=True)]
    assert fed(won + lost).diverging
    assert not fed(won + won[-30:]).diverging
    assert not fed(won + lost).well(None)


def thrown_back(after: float) -> list[float]:
    """A loss that falls fast, with noise, until a few steps throw it back for good."""
    rng = np.random.default_rng(0)
    fast = [2.3 - 0.05 * max(0, t - 15) + 0.15 * float(rng.standard_normal()) for t in range(50)]
    return fast + [5.4] + [after + 0.04 * float(rng.standard_normal()) for _ in range(2 * LEVEL)]


def test_a_run_thrown_back_to_its_start_while_it_learnt_fast_diverges() -> None:
    assert fed(thrown_back(2.3)).diverging
    assert not fed(thrown_back(1.2)).diverging


def noisy(steps: int, seed: int, persistence: float) -> list[float]:
    """A loss at 2 that no step betters, with noise of a tenth that lasts over steps."""
    rng, losses, off = np.random.default_rng(seed), [], 0.0
    for _ in range(steps):
        off = persistence * off + math.sqrt(1 - persistence**2) * 0.2 * float(rng.standard_normal())
        losses.append(2 + off)
    return losses


@pytest.mark.parametrize("persistence", [0.0, 0.3])
def test_a_run_that_stands_still_in_noise_is_not_called_diverging(persistence: float) -> None:
    told = 0
    for seed in range(4):
        losses, health = noisy(2500, seed, persistence), Health()
        for begin in range(0, len(losses), 10):
            health = health.after(losses[begin : begin + 10], 1e-3)
            told += health.diverging
    assert told <= 1, "of 1,000 windows"


def validated(losses: list[float], validations: list[float]) -> Health:
    health = fed(losses)
    for loss in validations:
        health = health.after_validation(loss)
    return health


def test_two_validations_and_losses_that_give_up_half_of_what_was_won_diverge() -> None:
    learnt, lost = [2.3] * 3 + [1.6, 1.2, 1.0, 1.5], [2.3, 9.0, 2.2, 2.4]
    assert validated(learnt + lost, [1.4, 4.6, 2.3]).diverging
    assert validated(learnt + lost, [1.4, math.nan, math.inf]).diverging
    assert not validated(learnt + lost, [1.4, 4.6]).diverging, "one is chance"
    assert not validated([*learnt, 1.0, 0.8, 0.6], [1.4, 2.2, 2.3]).diverging, "it overfits"
    assert not validated(learnt + lost, [4.6, 1.4, 1.5]).diverging
    assert not validated(learnt, [math.nan, 1.4, 1.5]).diverging
    assert not validated(learnt + lost, [1.4, 4.6, 2.3]).forgiven(ill=True).after(lost, None).diverging


def test_a_run_that_validates_as_if_it_had_never_learnt_is_dead() -> None:
    learnt, lost = [2.3, 2.1, 1.6, 0.7, 1.5], [6.2, 5.8, 2.4, 2.3]
    assert validated(learnt + lost, [2.36, 6.0]).dead(math.log(10))
    assert not validated(learnt + lost, [6.0]).dead(math.log(10)), "one is chance"
    assert not validated(learnt + lost, [2.36, 6.0]).dead(None)
    assert not validated(learnt, [2.36, 6.0]).dead(math.log(10)), "it overfits"
    assert not validated([2.3] * 9, [2.31, 2.3]).dead(math.log(10)), "it has not begun to learn"


def test_losses_that_are_not_finite_blind_nothing() -> None:
    broken = [math.nan if t % 7 == 0 else x for t, x in enumerate(falling(400, 3))]
    health = fed(broken)
    assert all(map(math.isfinite, health.recent))
    assert not health.diverging
    assert fed(broken + [math.inf, 9.0] * LEVEL).diverging


def test_a_run_at_the_uniform_loss_is_dead_and_so_is_one_whose_weights_stand_still() -> None:
    assert fed([math.log(10)] * MEMORY).dead(math.log(10))
    assert not fed([math.log(10)] * (MEMORY - 10)).dead(math.log(10))
    assert not fed([math.log(10)] * MEMORY).dead(None)
    assert fed([1.0] * 20, ratio=0.0).dead(None)
    assert not fed([1.0] * 20, ratio=None).dead(None), "not measured is not still"


def test_steps_that_move_the_weights_far_are_erratic() -> None:
    usual = fed([1.0] * 400, ratio=1e-3)
    assert not usual.after([1.0], 2e-3).erratic
    assert not usual.after([1.0], 0.05).erratic, "unusual, and still small"
    assert usual.after([1.0], 0.3).erratic
    assert Health().after([1.0], 1.5).erratic, "more than the weights themselves"


def test_what_is_forgiven_is_not_held_against_the_run_twice() -> None:
    health = fed([2.0] * LEVEL + [3.0] * LEVEL)
    assert not health.forgiven(ill=True).diverging
    assert not health.forgiven(ill=True).well(None), "not before new losses say so"
    assert health.forgiven(ill=True).after([1.9] * 5, None).well(None)
    assert health.forgiven(ill=True).began == 2.0


def test_health_survives_a_checkpoint() -> None:
    from dataclasses import asdict

    health = validated(falling(200, 4), [1.5, 1.4])
    assert msgspec.convert(json.loads(json.dumps(asdict(health))), Health) == health


def test_a_loss_that_blows_up_at_the_start_is_seen_at_once_and_is_no_state_to_go_back_to() -> None:
    health = fed([2.3, 2.3, 2.3, 5e4, 6e4, 7e4, 7e4, 7e4])
    assert health.diverging
    assert not health.well(None)
    assert not fed([2.3, 2.3, 9.0, 8.0]).well(None)
    assert fed([2.3, 2.3, 2.35, 2.2]).well(None)
    assert not fed([2.3, 2.3, 2.31, 2.3]).well(2.3), "no better than knowing nothing"
    assert Health().well(2.3), "the start is one"


def test_a_blow_up_is_seen_even_where_the_window_ends_lower() -> None:
    assert fed([2.3] * 12 + [9.0, 40.0, 9.0] + [2.5] * 5).diverging
    assert not fed([2.3] * 12 + [40.0] + [2.2] * 7).diverging, "one loss is a spike"


@pytest.mark.parametrize("losses", [[6.1, 2.0, 6.1], [6.1, 6.1, 2.0], [2.0, 6.1, 6.1, 2.0, 6.1, 6.1]])
def test_two_high_losses_of_three_are_no_blow_up(losses: list[float]) -> None:
    assert not fed([2.0] * 3 + losses).blown_up
    assert fed([2.0] * 3 + [*losses, 6.1, 6.1, 6.1]).blown_up


def test_what_is_within_rounding_of_a_constant_is_no_trouble() -> None:
    assert not fed([1.0] * 3 + [1.0 - 1e-9] * LEVEL + [1.0] * LEVEL).diverging, "nothing was won, so nothing was given up"
    steady = fed([1.0] * 400, ratio=0.2)
    assert not steady.after([1.0], 0.2 * (1 + 1e-7)).erratic
    assert steady.after([1.0], 0.4).erratic


def test_losses_around_zero_are_no_blow_up_once_their_scatter_is_known() -> None:
    rng = np.random.default_rng(0)
    health = fed([1e-9] * 3 + [0.1 * float(rng.standard_normal()) for _ in range(LEVEL + 7)])
    for _ in range(50):
        health = health.after([0.1 * float(rng.standard_normal()) for _ in range(10)], None)
        assert not health.blown_up


def test_losses_worse_than_the_uniform_one_are_dead_too() -> None:
    assert fed([2.3] * 3 + [2.4] * MEMORY).dead(2.3)
    assert not fed([2.3] * 3 + [2.4] * (MEMORY - 1) + [2.0]).dead(2.3)
    assert not fed([50 - 0.2 * t for t in range(100)]).dead(5.5), "still far above, and falling"


def test_a_state_whose_last_loss_or_validation_is_far_above_the_start_is_none_to_go_back_to() -> None:
    learning = [2.3, 2.2, 2.0, 1.8, 1.5]
    assert fed(learning).well(2.3)
    assert not fed([*learning, 1.1, 0.9, 14.0]).well(2.3), "the median hides it"
    assert fed(learning).well(2.3, evaluated=1.6)
    assert not fed(learning).well(2.3, evaluated=4.0)
    assert not fed(learning).well(2.3, evaluated=math.nan)
