"""A recipe tuned at one horizon and run at another: lr, weight decay and eps, by the formulas of the papers."""

from typing import Any

import pytest

from harness.config.errors import UserError
from harness.config.loader import decode
from harness.plan.plan import Plan, plan
from harness.plan.world import World

ADAMW = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1, "eps": 1e-8}


def planned(optim: dict[str, Any] = ADAMW, **sections: dict[str, Any]) -> Plan:
    """Four times the batch, ten times the horizon."""
    tree: dict[str, Any] = {
        "recipe": {"sample_tokens": 1000},
        "batch": {"reference": 64, "total": 256},
        "reference": {"samples": "10k"},
        "optim": optim,
        "scaling": {"warmup_samples": 1000},
        "schedule": {"samples": "100k"},
    }
    return plan(decode(tree | sections), World(1))


def test_adam_s_lr_falls_with_the_horizon_and_the_decay_keeps_its_timescale() -> None:
    p = planned()
    assert p.target_lr == pytest.approx(1e-3 * 2 * 10**-0.32)
    assert p.eps == 1e-8
    assert planned(scaling={"warmup_samples": 1000, "rule": "adam"}).eps == pytest.approx(1e-8 * (10 / 4) ** 0.5)
    assert 256 / (p.target_lr * p.weight_decay * 100_000) == pytest.approx(64 / (1e-3 * 0.1 * 10_000))
    assert "2409.19913" in p.sources["rule"]
    assert "D/D0 = 10" in p.sources["lr"]


@pytest.mark.parametrize(("exponent", "factor"), [(0.5, 10**-0.5), (0.3, 10**-0.3), (0, 1.0)])
def test_the_exponent_is_a_setting(exponent: float, factor: float) -> None:
    p = planned(scaling={"warmup_samples": 1000, "horizon_exponent": exponent})
    assert p.target_lr == pytest.approx(2e-3 * factor)
    assert "2409.19913" not in p.sources["rule"]


def test_a_horizon_in_tokens_is_the_same_horizon() -> None:
    assert planned(reference={"tokens": "10M"}) == planned()


def test_at_the_reference_s_own_horizon_nothing_but_the_batch_counts() -> None:
    p, plain = planned(schedule={"samples": "10k"}), planned(schedule={"samples": "10k"}, reference={})
    assert (p.target_lr, p.weight_decay, p.eps) == (plain.target_lr, plain.weight_decay, plain.eps)


def test_sgd_keeps_its_lr_and_says_that_no_law_is_known() -> None:
    p = planned({"name": "sgd", "lr": 0.1})
    assert p.target_lr == pytest.approx(0.4)
    assert "no law is known for sgd" in p.sources["lr"]


def test_a_decay_that_is_kept_is_kept() -> None:
    assert planned(scaling={"warmup_samples": 1000, "weight_decay": "keep"}).weight_decay == 0.1


def test_another_size_is_warned_of_until_the_recipe_is_tuned_at_it() -> None:
    recipe = {"sample_tokens": 1000, "parameters": "1B"}
    codes = {w.code: w.message for w in planned(recipe=recipe, reference={"parameters": "100M"}).warnings}
    assert "10 times the reference's" in codes["other_size"]
    assert "other_size" not in {w.code for w in planned(recipe=recipe, reference={"parameters": "1B"}).warnings}


@pytest.mark.parametrize(
    ("sections", "setting"),
    [
        ({"reference": {"samples": 10, "tokens": 10}}, "reference"),
        ({"reference": {}, "scaling": {"horizon_exponent": 0.3, "warmup_samples": 0}}, "scaling.horizon_exponent"),
        ({"scaling": {"horizon_exponent": 400, "warmup_samples": 0}}, "scaling.horizon_exponent"),
        ({"scaling": {"horizon_exponent": 400, "warmup_samples": 0}, "reference": {"samples": "1B"}}, "scaling.horizon_exponent"),
        ({"reference": {"tokens": "1M"}, "recipe": {"samples": 9}}, "recipe.sample_tokens"),
    ],
)
def test_what_cannot_be_is_refused_by_name(sections: dict[str, Any], setting: str) -> None:
    with pytest.raises(UserError) as caught:
        planned(**sections)
    assert caught.value.setting == setting
