"""Each scaling rule gives the numbers its paper states, and the companion rewrites keep what they promise to keep."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.config.errors import UserError
from harness.config.loader import decode
from harness.modeling.optimizer import build_optimizer
from harness.plan.optimizers import OPTIMIZERS, Family
from harness.plan.plan import Plan, plan
from harness.plan.scaling_rules import RULES, BetaMode, Situation, rewrite, scale_beta, scale_betas, scale_decay
from harness.plan.world import World
from harness.recipes.digits import Digits

ADAMW: dict[str, Any] = {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.1}
SGD: dict[str, Any] = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}


def planned(optim: dict[str, Any], reference: int, total: int, **scaling: Any) -> Plan:
    """A plan of a long run at batch `total`, tuned at `reference`."""
    tree = {
        "recipe": {"samples": 1_281_167},
        "batch": {"reference": reference, "total": total},
        "optim": optim,
        "scaling": scaling,
        "schedule": {"epochs": 90},
    }
    return plan(decode(tree), World(1))


def test_goyal_linear_takes_lr_01_at_256_to_32_at_8192_with_five_epochs_of_warmup() -> None:
    made = planned(SGD, 256, 8192, rule="linear")
    assert made.target_lr == pytest.approx(3.2)
    assert made.reference_lr == 0.1
    assert made.warmup_samples == 5 * 1_281_167
    assert (made.momentum, made.weight_decay) == (0.9, 1e-4)
    assert made.lr(0) == pytest.approx(0.1)
    assert made.lr(made.warmup_steps) == pytest.approx(3.2)


@pytest.mark.parametrize(("batch", "lr"), [(64, 0.025), (128, 0.05), (256, 0.1), (512, 0.2), (1024, 0.4), (65536, 25.6)])
def test_goyal_linear_is_01_times_batch_over_256(batch: int, lr: float) -> None:
    assert planned(SGD, 256, batch, rule="linear").target_lr == pytest.approx(lr)


def test_sqrt_doubles_the_rate_at_four_times_the_batch_and_leaves_the_rest() -> None:
    made = planned(SGD, 256, 1024, rule="sqrt")
    assert made.target_lr == pytest.approx(0.2)
    assert (made.momentum, made.weight_decay) == (0.9, 1e-4)


def test_malladi_adam_sde_at_k_4() -> None:
    made = planned(ADAMW, 256, 1024, rule="adam_sde")
    assert made.target_lr == pytest.approx(2e-3)
    assert made.betas == pytest.approx((1 - 4 * 0.1, 1 - 4 * 0.001))
    assert made.eps == pytest.approx(1e-8 / 2)
    assert made.weight_decay == 0.1


@pytest.mark.parametrize("total", [2560, 4096])
def test_malladi_adam_sde_is_refused_at_its_bound_of_k_10(total: int) -> None:
    with pytest.raises(UserError, match=r"scaling\.rule: adam_sde: .*1/\(1-beta1\) = 10; use rule adam"):
        planned(ADAMW, 256, total, rule="adam_sde")


def test_malladi_adam_sde_holds_just_under_its_bound() -> None:
    made = planned(ADAMW, 256, 2559, rule="adam_sde")
    assert made.betas is not None
    assert 0 < made.betas[0] < 0.001


def test_a_bound_set_by_beta2_names_beta2() -> None:
    with pytest.raises(UserError, match=r"1/\(1-beta2\) = 2;"):
        scale_betas((0.9, 0.5), 3, "sde")


def test_marek_adam_keeps_beta1_and_the_half_life_of_beta2_in_samples_at_any_ratio() -> None:
    for total in (64, 256, 1024, 1 << 17):
        made = planned(ADAMW, 256, total, rule="adam")
        assert made.betas is not None
        first, second = made.betas
        assert first == 0.9
        assert total * math.log(0.5) / math.log(second) == pytest.approx(256 * math.log(0.5) / math.log(0.999))
        assert made.target_lr == pytest.approx(1e-3 * math.sqrt(total / 256))
        assert made.eps == pytest.approx(1e-8 / math.sqrt(total / 256))
    assert "beta1 kept, beta2^k" in made.sources["betas"]
    assert "2507.07101" in made.sources["rule"]


def test_both_half_lives_have_a_name_of_their_own() -> None:
    both = planned(ADAMW, 256, 1024, rule="adam", betas="half_life_both")
    assert both.betas == pytest.approx((0.9**4, 0.999**4))
    assert both.sources["betas"] == "beta^k: the same half-life in samples"
    assert planned(ADAMW, 256, 1024, rule="sqrt", betas="half_life").betas == pytest.approx((0.9, 0.999**4))


def test_marek_beta2_of_a_batch_of_one_from_512_is_0999_to_the_512th_root() -> None:
    """The authors' runs of GPT-2 small: beta2 0.95 at batch 512, with fixed half-life 0.9999 at batch 1."""
    assert scale_beta(0.95, 1 / 512, "half_life") == pytest.approx(0.9999, abs=5e-7)


def test_mccandlish_at_equal_batches_keeps_and_is_linear_far_under_and_flat_far_over_the_noise_scale() -> None:
    def factor(b: int, bn: float) -> float:
        return rewrite("noise", "sgd", Situation(b, 64, bn))[1].lr

    assert factor(64, 1000) == pytest.approx(1)
    assert factor(640, 1e9) == pytest.approx(10, rel=1e-5)
    assert factor(10**9, 64) == pytest.approx(2, rel=1e-6)
    assert factor(64 * 100, 1e-3) == pytest.approx(1, rel=1e-4)
    assert factor(1000, 1000) == pytest.approx((1 + 1000 / 64) / 2)


def test_mccandlish_at_the_noise_scale_half_of_the_best_rate_and_twice_the_samples() -> None:
    """McCandlish et al. 2018: at B = Bn the run takes twice the least samples, so far below it k x lr/lr' goes to 2."""
    done = rewrite("noise", "sgd", Situation(10**6, 1, 1e6))[1]
    assert done.lr == pytest.approx((1 + 1e6) / 2)
    assert done.horizon == pytest.approx(2, rel=1e-5)


def test_surge_peaks_at_the_noise_scale_and_falls_after() -> None:
    def factor(b: int) -> float:
        return rewrite("surge", "adam", Situation(b, 100, 1600.0))[1].lr

    rates = [factor(b) for b in (100, 400, 800, 1599, 1600, 1601, 3200, 25600)]
    assert rates[0] == pytest.approx(1)
    assert max(rates) == factor(1600)
    assert rates[:5] == sorted(rates[:5])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert factor(25600) == pytest.approx(1), "the curve is symmetric in log batch around the noise scale"
    assert rewrite("surge", "adam", Situation(400, 100, 1e9))[1].lr == pytest.approx(2), "far under the peak: the square root"


def test_legw_has_k_times_the_warmup_epochs_so_the_same_warmup_steps() -> None:
    """You et al. 2019: double the batch, double the warm-up epochs, rate x sqrt(2)."""
    base = planned(SGD, 256, 256, rule="legw", warmup_epochs=0.5)
    wide = planned(SGD, 256, 2048, rule="legw", warmup_epochs=0.5)
    assert wide.warmup_samples == pytest.approx(8 * base.warmup_samples, abs=8)
    assert wide.warmup_steps == pytest.approx(base.warmup_steps, abs=1)
    assert wide.target_lr == pytest.approx(0.1 * math.sqrt(8))


def test_none_changes_nothing() -> None:
    made = planned(ADAMW, 256, 8192, rule="none")
    assert (made.target_lr, made.betas, made.eps, made.weight_decay) == (1e-3, (0.9, 0.999), 1e-8, 0.1)
    assert made.warmup_samples == 0


@pytest.mark.parametrize("rule", [*RULES, "auto"])
def test_every_rule_changes_nothing_at_the_reference_batch(rule: str) -> None:
    made = planned(ADAMW, 256, 256, rule=rule, noise_scale=500)
    assert made.target_lr == pytest.approx(1e-3)
    assert made.betas == pytest.approx((0.9, 0.999))
    assert made.eps == pytest.approx(1e-8)
    assert made.weight_decay == pytest.approx(0.1)
    assert made.warmup_samples == 0


@pytest.mark.parametrize("rule", [*RULES, "auto"])
@pytest.mark.parametrize("total", [32, 256, 1024])
def test_the_timescale_of_weight_decay_is_constant_for_every_rule(rule: str, total: int) -> None:
    made = planned(ADAMW, 256, total, rule=rule, noise_scale=500, weight_decay="timescale")
    assert made.global_batch / (made.target_lr * made.weight_decay) == pytest.approx(256 / (1e-3 * 0.1))


def test_rule_adam_and_auto_keep_the_timescale_unasked_and_the_run_file_can_say_no() -> None:
    assert planned(ADAMW, 256, 1024, rule="adam").weight_decay == pytest.approx(0.1 * 4 / 2)
    assert planned(ADAMW, 256, 1024).weight_decay == pytest.approx(0.1 * 4 / 2)
    assert planned(ADAMW, 256, 1024, weight_decay="keep").weight_decay == 0.1
    assert planned(ADAMW | {"name": "adam"}, 256, 1024).weight_decay == 0.1, "coupled"
    assert planned(ADAMW, 256, 1024, rule="adam", weight_decay="keep").weight_decay == 0.1


def test_the_run_files_betas_beat_the_rules() -> None:
    assert planned(ADAMW, 256, 1024, rule="adam", betas="keep").betas == (0.9, 0.999)
    assert planned(ADAMW, 256, 1024, rule="linear", betas="half_life").betas == pytest.approx((0.9, 0.999**4))


@pytest.mark.parametrize(("family", "taken"), [("sgd", "linear"), ("adam", "sqrt"), ("sign", "sqrt")])
def test_auto_takes_a_rule_by_family_and_says_so(family: Family, taken: str) -> None:
    name, done = rewrite("auto", family, Situation(1024, 256))
    assert name == taken
    same = rewrite(taken, family, Situation(1024, 256))[1]
    assert (done.lr, done.betas, done.eps) == (same.lr, same.betas, same.eps)
    assert done.weight_decay == ("timescale" if family == "adam" else same.weight_decay)
    assert f"auto took {taken} for the {family} family" in done.reason


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_auto_is_the_default_and_plans_every_optimizer(name: str) -> None:
    made = planned({"name": name, "lr": 0.01}, 256, 1024)
    assert made == planned({"name": name, "lr": 0.01}, 256, 1024, rule="auto")
    assert made.rule in RULES
    assert made.target_lr > 0.01


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_only_decoupled_decay_is_scaled_by_timescale(name: str) -> None:
    """Coupled decay is part of the loss: another one moves the optimum. So is it in torch's Adam, and all before AdamW."""
    coupled = name in ("adam", "nadam", "radam", "adamax", "adagrad", "rmsprop")
    made = planned({"name": name, "lr": 0.01, "weight_decay": 0.1}, 256, 4096, rule="adam")
    asked = {"rule": "sqrt", "weight_decay": "timescale"}
    if coupled:
        assert made.weight_decay == 0.1
        assert "coupled" in made.sources["weight_decay"]
        with pytest.raises(UserError, match=r"scaling\.weight_decay: is timescale, but .* coupled: .*; set keep, or optim.name"):
            planned({"name": name, "lr": 0.01, "weight_decay": 0.1}, 256, 4096, **asked)
    else:
        assert made.weight_decay == pytest.approx(0.4)
        assert planned({"name": name, "lr": 0.01, "weight_decay": 0.1}, 256, 4096, **asked).weight_decay == pytest.approx(0.4)
    assert planned({"name": name, "lr": 0.01, "weight_decay": 0.1}, 256, 4096, rule="adam", weight_decay="keep").weight_decay == 0.1


@pytest.mark.parametrize("name", [n for n, facts in OPTIMIZERS.items() if facts.source.startswith("torch.") and n != "nesterov"])
def test_what_the_table_says_of_decay_is_what_torch_does(name: str) -> None:
    """With a gradient of 0, decay that nothing divides by the gradient's size shrinks a weight by lr x decay a step."""
    weight = torch.nn.Parameter(torch.ones(2, 2))
    facts = OPTIMIZERS[name]
    kind = getattr(torch.optim, facts.source.rpartition(".")[2])
    optimizer = kind([weight], lr=0.01, weight_decay=0.1)
    for _ in range(50):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    assert facts.has_timescale == (float(weight.detach()[0, 0]) == pytest.approx(0.999**50, rel=1e-4))


def test_coupled_decay_at_k_16_ends_at_the_optimum_of_k_1() -> None:
    """Least squares around 1 with decay 0.1: the optimum is 1 / 1.1 = 0.909, at any batch. Scaled by sqrt(k) it would be 0.714."""
    ends = []
    for total in (256, 4096):
        made = planned({"name": "adam", "lr": 0.01, "weight_decay": 0.1}, 256, total)
        weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        optimizer = torch.optim.Adam([weight], lr=made.target_lr, betas=made.betas or (0, 0), weight_decay=made.weight_decay)
        for _ in range(2000):
            weight.grad = weight.detach() - 1
            optimizer.step()
        ends.append(float(weight.detach()))
    assert ends == pytest.approx([1 / 1.1, 1 / 1.1], abs=2e-3)


RMSPROP: dict[str, Any] = {"name": "rmsprop", "lr": 1e-3, "momentum": 0.9}


@pytest.mark.parametrize(
    ("scaling", "alpha"),
    [
        ({"rule": "adam"}, 0.99**4),
        ({}, 0.99),
        ({"rule": "adam_sde"}, 1 - 4 * 0.01),
        ({"rule": "sqrt"}, 0.99),
        ({"rule": "none"}, 0.99),
        ({"rule": "sqrt", "betas": "half_life"}, 0.99**4),
        ({"rule": "adam", "betas": "keep"}, 0.99),
    ],
)
def test_rmsprops_alpha_follows_the_rule_as_beta2_does(scaling: dict[str, Any], alpha: float) -> None:
    """Malladi et al. 2022: the square root scaling rule of RMSprop is Adam's, with its one decay rate."""
    made = planned(RMSPROP, 256, 1024, **scaling)
    assert made.alpha == pytest.approx(alpha)
    assert made.momentum == 0.9
    assert made.sources["alpha"]
    assert made.eps == pytest.approx(1e-8 / 2 if made.rule in ("adam", "adam_sde") else 1e-8)
    assert planned(RMSPROP | {"alpha": 0.9}, 256, 256, **scaling).alpha == 0.9
    built = build_optimizer(made, Digits(), torch.nn.Linear(2, 2), fused=False)
    assert {group["alpha"] for group in built.param_groups} == {made.alpha}


def test_rmsprops_alpha_has_malladis_bound_and_no_other_optimizer_has_it() -> None:
    with pytest.raises(UserError, match=r"scaling\.rule: adam_sde: ratio 100 is past its bound 1/\(1-alpha\) = 100; use rule adam"):
        planned(RMSPROP, 256, 25_600, rule="adam_sde")
    assert planned(ADAMW, 256, 1024).alpha is None
    with pytest.raises(UserError, match=r"optim\.alpha: is 0\.9, but adamw has no alpha"):
        planned(ADAMW | {"alpha": 0.9}, 256, 1024)


def test_a_custom_rule_is_a_function_of_the_ratio(tmp_path: Path) -> None:
    file = tmp_path / "my_power_rule.py"
    file.write_text("def power(k: float) -> float:\n    return k ** 0.75\n")
    made = planned(SGD, 256, 4096, rule=f"{file}:power")
    assert made.target_lr == pytest.approx(0.1 * 16**0.75)
    assert made.rule == f"{file}:power"
    assert "my_power_rule.py:power" in made.sources["lr"]


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_names_its_source_and_its_factor(rule: str) -> None:
    done = RULES[rule](Situation(1024, 256, 500.0))
    assert done.reason
    assert "arXiv" in done.source or rule == "none"
    assert "arXiv" in (RULES[rule].__doc__ or "") or any(c.isdigit() for c in RULES[rule].__doc__ or "") or rule == "none"


@given(
    beta=st.floats(0, 0.99999),
    k=st.floats(1e-3, 1e4),
    mode=st.sampled_from(["keep", "half_life", "half_life_both"]),
)
def test_kept_and_half_life_betas_stay_betas(beta: float, k: float, mode: BetaMode) -> None:
    assert 0 <= scale_beta(beta, k, mode) <= 1


@given(first=st.floats(0.01, 0.999), second=st.floats(0.01, 0.999), k=st.floats(0.01, 2000))
def test_sde_betas_are_refused_or_in_range(first: float, second: float, k: float) -> None:
    bound = min(1 / (1 - first), 1 / (1 - second)) * (1 - 1e-9)
    if k >= bound:
        with pytest.raises(UserError):
            scale_betas((first, second), k, "sde")
    else:
        assert all(-1e-9 < b < 1 for b in scale_betas((first, second), k, "sde"))


@given(wd=st.floats(0, 1), k=st.floats(0.1, 1000), factor=st.floats(0.1, 1000))
def test_decay_is_kept_unless_the_timescale_is_asked_for(wd: float, k: float, factor: float) -> None:
    assert scale_decay(wd, k, factor, "keep") == wd
    assert scale_decay(wd, k, factor, "timescale") * factor == pytest.approx(wd * k)
