"""The plan: every number derived once, with a source; the batch splits exactly; warnings fire when they should and only then."""

import dataclasses
import json
import math
import re
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from harness.config.errors import UserError
from harness.config.loader import decode
from harness.config.schema import EXCLUSIVE, Config
from harness.data.sample_order import Chunk, shard_step
from harness.plan.plan import Plan, plan
from harness.plan.plan_warnings import Facts, cautions
from harness.plan.world import Place, World, place
from harness.telemetry.lr_advice import too_high
from harness.watch.plan_table import print_plan

OUTSIDE = [
    "world_size",
    "nodes",
    "micro_batch",
    "accumulate",
    "global_batch",
    "reference_batch",
    "ratio",
    "rule",
    "lr",
    "reference_lr",
    "weight_decay",
    "momentum",
    "betas",
    "eps",
    "warmup_samples",
    "warmup_steps",
    "total_samples",
    "total_steps",
    "schedule",
    "backend",
    "precision",
    "warnings",
    "sources",
]
"""The keys that other programs may read."""


def config(**sections: dict[str, Any]) -> Config:
    """A run file of 100,000 samples at batch 64, with whole sections replaced."""
    tree: dict[str, Any] = {
        "recipe": {"samples": 10_000},
        "batch": {"reference": 64, "per_gpu": 64},
        "optim": {"lr": 0.1, "momentum": 0.9},
        "scaling": {"rule": "linear", "warmup_epochs": 1},
        "schedule": {"epochs": 10},
    }
    return decode(tree | sections)


def made(world: World | None = None, **sections: dict[str, Any]) -> Plan:
    """The plan of `config(**sections)`."""
    return plan(config(**sections), world or World(1))


def test_the_json_of_a_plan_has_every_promised_key_and_is_json() -> None:
    tree = made(World(4, 2)).to_json()
    assert set(OUTSIDE) <= set(tree)
    assert json.loads(json.dumps(tree)) == tree
    assert (tree["lr"], tree["reference_lr"], tree["betas"], tree["eps"]) == (pytest.approx(0.4), 0.1, None, None)
    assert "target_lr" not in tree


def test_the_warnings_of_a_plan_are_codes_with_messages() -> None:
    tree = made(World(16)).to_json()
    assert tree["warnings"]
    assert all(set(w) == {"code", "message"} for w in tree["warnings"])


@pytest.mark.parametrize("name", ["sgd", "adamw", "adagrad"])
def test_each_derived_number_has_a_source(name: str) -> None:
    tree = made(World(4), optim={"name": name, "lr": 0.1}).to_json()
    missing = [k for k in OUTSIDE if k not in ("sources", "warnings") and not tree["sources"].get(k)]
    assert missing == []
    assert set(tree["sources"]) <= set(tree)


def test_sources_tell_the_arithmetic() -> None:
    sources = made(World(4)).sources
    assert sources["ratio"] == "k = 256 / 64"
    assert sources["global_batch"] == "batch.per_gpu 64 x 4 ranks"
    assert "x4" in sources["lr"]
    assert sources["total_steps"] == "100000 / 256 per step, the last with 160"


@given(
    ranks=st.integers(1, 4096),
    micro=st.integers(1, 64),
    passes=st.integers(1, 16),
    fixed=st.booleans(),
)
def test_the_global_batch_is_world_times_micro_times_accumulate(ranks: int, micro: int, passes: int, fixed: bool) -> None:
    wish = {"total": ranks * micro * passes} if fixed else {"per_gpu": micro * passes}
    p = made(World(ranks), batch={"reference": 64, "micro": micro, **wish}, scaling={"rule": "none"}, schedule={"samples": 10**7})
    assert (p.micro_batch, p.accumulate) == (micro, passes)
    assert p.global_batch == p.world_size * p.micro_batch * p.accumulate == ranks * micro * passes
    assert p.ratio == p.global_batch / 64


@given(total=st.integers(1, 5000), ranks=st.integers(1, 64), micro=st.integers(1, 100) | st.just("auto"))
def test_a_batch_splits_exactly_or_is_refused(total: int, ranks: int, micro: int | str) -> None:
    def split() -> Plan:
        return made(World(ranks), batch={"reference": 64, "total": total, "micro": micro}, scaling={"rule": "none"})

    share, rest = divmod(total, ranks)
    if rest or (isinstance(micro, int) and micro < share and share % micro):
        with pytest.raises(UserError) as raised:
            split()
        assert raised.value.setting == ("batch.total" if rest else "batch.micro")
    else:
        p = split()
        assert p.global_batch == total == p.world_size * p.micro_batch * p.accumulate
        assert micro == "auto" or p.micro_batch <= int(micro)


@pytest.mark.parametrize(
    ("samples", "last", "steps", "total"),
    [(640, "keep", 10, 640), (650, "keep", 11, 650), (640, "drop", 10, 640), (650, "drop", 10, 640), (1, "keep", 1, 1)],
)
def test_the_last_short_batch_is_kept_or_dropped(samples: int, last: str, steps: int, total: int) -> None:
    p = made(batch={"reference": 64, "total": 64, "last": last}, schedule={"samples": samples}, scaling={"rule": "none"})
    assert (p.total_steps, p.total_samples) == (steps, total)


@given(samples=st.integers(1, 10**6), batch=st.integers(1, 1000))
def test_kept_steps_hold_every_sample_of_the_schedule(samples: int, batch: int) -> None:
    p = made(batch={"reference": 64, "total": batch}, schedule={"samples": samples}, scaling={"rule": "none"})
    assert p.total_samples == samples
    assert (p.total_steps - 1) * batch < samples <= p.total_steps * batch


@pytest.mark.parametrize("gpus", [1, 2, 8, 64])
def test_durations_stay_in_samples_as_the_world_grows(gpus: int) -> None:
    p = made(World(gpus), eval={"every_epochs": 0.5}, checkpoint={"every_samples": 3000})
    assert (p.total_samples, p.warmup_samples) == (100_000, 10_000)
    assert (p.eval_every_samples, p.checkpoint_every_samples) == (5000, 3000)
    assert p.warmup_steps == math.ceil(10_000 / (64 * gpus))
    assert p.lr(0) == pytest.approx(0.1)
    assert p.lr_at(10_000) == pytest.approx(0.1 * gpus)


def test_the_rate_of_a_step_is_the_rate_at_its_first_sample() -> None:
    p = made(World(8))
    assert [p.lr(s) for s in (0, 1, 10, 100)] == [p.lr_at(s * 512) for s in (0, 1, 10, 100)]


def test_the_size_of_the_data_set_is_the_run_files_before_the_callers() -> None:
    assert plan(config(recipe={"samples": 500}), World(1), dataset=9000).dataset_samples == 500
    assert plan(config(recipe={}), World(1), dataset=9000).total_samples == 90_000


def test_a_plan_in_samples_needs_no_data_set() -> None:
    p = made(recipe={}, schedule={"samples": 5000}, scaling={"rule": "linear", "warmup_fraction": 0.1})
    assert (p.dataset_samples, p.total_samples, p.warmup_samples) == (None, 5000, 500)


def test_extend_lengthens_the_schedule_by_what_the_larger_batch_wastes() -> None:
    noise = {"rule": "noise", "noise_scale": 512, "warmup_samples": 1000}
    short, long = made(World(8), scaling=noise), made(World(8), scaling=noise | {"extend": True})
    factor = (1 + 512 / 64) / (1 + 512 / 512)
    assert short.target_lr == long.target_lr == pytest.approx(0.1 * factor)
    assert short.total_samples == 100_000
    assert long.total_samples == long.schedule.horizon == round(100_000 * 8 / factor)
    assert "scaling.extend" in long.sources["total_samples"]
    assert "more_samples" in {c.code for c in short.warnings}
    assert "more_samples" not in {c.code for c in long.warnings}


@pytest.mark.parametrize(
    ("epochs", "rule", "gpus", "samples", "says"),
    [
        (3, "adam", 2, 15_600, "default 10 % of the schedule, since lr is raised and 5 epochs would be longer"),
        (3, "adam", 8, 15_600, "default 10 % of the schedule"),
        (3, "linear", 8, 15_600, "default 10 % of the schedule"),
        (3, "legw", 8, 15_600, "5 epochs x 8 by the rule would be longer"),
        (50, "linear", 2, 260_000, "default 5 epochs, since lr is raised (Goyal et al. 2017)"),
        (49, "linear", 2, 254_800, "default 10 % of the schedule"),
        (90, "linear", 2, 260_000, "default 5 epochs"),
        (200, "legw", 2, 520_000, "default 5 epochs x 2 by the rule"),
        (3, "adam", 1, 0, "none asked for"),
        (3, "none", 8, 0, "none asked for"),
    ],
)
def test_the_default_warmup_is_five_epochs_or_a_tenth_of_the_run(
    epochs: int, rule: str, gpus: int, samples: int, says: str
) -> None:
    """A fine-tune of 3 epochs has no room for the five epochs of warm-up that 90 epochs of ImageNet have."""
    optim = {"name": "adamw", "lr": 5e-5}
    recipe, batch = {"samples": 52_000}, {"reference": 16, "per_gpu": 16}
    p = made(World(gpus), recipe=recipe, batch=batch, optim=optim, scaling={"rule": rule}, schedule={"epochs": epochs})
    assert p.warmup_samples == samples
    assert says in p.sources["warmup_samples"]
    assert p.lr_at(samples) == pytest.approx(p.target_lr)


def test_milestones_come_in_any_order() -> None:
    given = [9.0, 5.0, 7.0]
    p = made(schedule={"epochs": 10, "shape": "step", "milestones": given}, batch={"reference": 64, "total": 64})
    assert p.schedule.milestones == (50_000, 70_000, 90_000)


def test_a_hundred_thousand_ranks_and_a_billion_samples_are_planned_exactly() -> None:
    p = made(
        World(100_000, 12_500),
        recipe={"samples": 10**9},
        schedule={"epochs": 3},
        batch={"reference": 4096, "per_gpu": 32, "micro": 8},
    )
    assert (p.global_batch, p.accumulate) == (3_200_000, 4)
    assert (p.total_samples, p.total_steps, p.warmup_samples) == (3 * 10**9, 938, 10**9)
    assert p.ratio == 781.25


def test_equal_input_gives_equal_plans_and_another_input_another() -> None:
    assert made(World(4)) == made(World(4))
    assert made(World(4)).to_json() == made(World(4)).to_json()
    assert made(World(4)) != made(World(8))


def test_a_simulated_world_has_the_same_numbers_as_the_real_one() -> None:
    real, simulated = made(World(8)), made(World(8, processes=2))
    assert (real.passes, simulated.passes, simulated.processes) == (1, 4, 2)
    for key in ("global_batch", "micro_batch", "accumulate", "target_lr", "total_steps", "schedule", "betas", "warnings"):
        assert getattr(real, key) == getattr(simulated, key)
    assert "simulated by 2 processes" in simulated.sources["world_size"]


@pytest.mark.parametrize(("batch", "micro"), [(96, 8), (96, 6), (32, 8), (8, 1)])
@pytest.mark.parametrize("left", [1, 2, 3])
def test_ranks_that_are_left_take_the_same_passes(batch: int, micro: int, left: int) -> None:
    """Whether or not the batch splits over them; a step of another batch, too."""
    whole = made(World(4), batch={"reference": 8, "total": batch, "micro": micro})
    for planned_now, now in ((whole, whole.on_ranks(left)), (whole.at_batch(2 * batch), whole.on_ranks(left).at_batch(2 * batch))):
        assert (now.world_size, now.global_batch, now.micro_batch) == (left, planned_now.global_batch, planned_now.micro_batch)

        def chunks(p: Plan) -> list[Chunk]:
            args = p.global_batch, p.micro_batch, p.world_size
            shards = [shard_step(0, *args, rank, p.processes) for rank in range(p.world_size)]
            assert {len(each.chunks) for each in shards} == {p.passes}
            return sorted((c for each in shards for c in each.chunks if not c.padding), key=lambda c: c.start)

        assert chunks(now) == chunks(planned_now)
        shares = {
            sum(c.count for c in shard_step(0, batch, now.micro_batch, left, r, left).chunks if not c.padding) for r in range(left)
        }
        assert (now.at_batch(batch).share is not None) == (len(shares) == 1)


@pytest.mark.parametrize(
    ("sections", "world"),
    [
        ({"backend": {"name": "fsdp"}}, World(4, device="cpu")),
        ({"backend": {"name": "zero2"}}, World(4, device="cpu")),
        ({}, World(4, device="gpu")),
        ({}, World(4, nodes=2, device="cpu")),
        ({"backend": {"compress": "powersgd"}}, World(4, device="cpu")),
        ({"scaling": {"rule": "adascale"}}, World(4, device="cpu")),
    ],
)
def test_what_cannot_do_without_a_rank_is_refused_in_one_line(sections: dict[str, Any], world: World) -> None:
    with pytest.raises(UserError, match=r"restart\.in_place: is true, but .*: all ranks start again from the newest checkpoint"):
        made(world, restart={"in_place": True}, **sections)


def test_the_optimizers_own_defaults_fill_what_the_run_file_leaves_out() -> None:
    p = made(optim={"name": "lamb", "lr": 0.01}, scaling={"rule": "none"})
    assert (p.betas, p.eps, p.momentum) == ((0.9, 0.999), 1e-6, None)
    q = made(optim={"name": "nesterov", "lr": 0.01}, scaling={"rule": "none"})
    assert (q.betas, q.eps, q.momentum) == (None, None, 0.9)
    assert made(optim={"name": "sgd", "lr": 0.1, "momentum": 0.0}).momentum == 0.0


FINE = Facts(
    family="sgd",
    rule="linear",
    k=4.0,
    lr_factor=4.0,
    world=4,
    share=64,
    backend="ddp",
    global_batch=256,
    reference_batch=64,
    noise_scale=1000.0,
    lr=0.4,
    reference_lr=0.1,
    largest_stable_lr=None,
    beta2=None,
    beta2_scaled=None,
    warmup=25_600,
    warmup_factor=1.0,
    warmup_limit=99_999,
    warmup_steps=100,
    total_steps=300,
    dropped=0,
    horizon=100_000,
    wasted=0,
    budget=100_000,
    overspent=0,
    rough_noise=False,
    milestones=(),
    unreached=0,
)


ADAMW = {"name": "adamw", "lr": 1e-3}


def codes(**changes: Any) -> list[str]:
    """The codes of all warnings at FINE with changes."""
    return [c.code for c in cautions(Facts(**(vars(FINE) | changes)))]


def test_a_sound_plan_has_no_warnings() -> None:
    assert codes() == []


@pytest.mark.parametrize(
    ("code", "fires", "holds"),
    [
        ("past_noise_scale", {"global_batch": 1001}, {"global_batch": 1000}),
        ("past_noise_scale", {"noise_scale": 255.0}, {"noise_scale": None}),
        ("adam_linear", {"family": "adam"}, {"family": "adam", "rule": "adam"}),
        ("adam_linear", {"family": "adam", "k": 2.0}, {"family": "adam", "k": 1.9}),
        ("short_warmup", {"warmup_steps": 99}, {"warmup_steps": 99, "lr_factor": 1.0}),
        ("short_adam_warmup", {"beta2": 0.99, "warmup_steps": 199}, {"beta2": 0.99, "warmup_steps": 200}),
        ("few_steps", {"total_steps": 299}, {"total_steps": 299, "k": 1.0}),
        ("dropped_samples", {"dropped": 1001}, {"dropped": 1000}),
        ("unknown_headroom", {"k": 8.0}, {"k": 7.9}),
        ("unknown_headroom", {"k": 9.0}, {"k": 9.0, "lr_factor": 1.0}),
        ("past_headroom", {"largest_stable_lr": 0.39}, {"largest_stable_lr": 0.4}),
        ("past_headroom", {"largest_stable_lr": 0.05}, {"largest_stable_lr": 0.05, "lr_factor": 1.0}),
        ("unknown_headroom", {"k": 8.0}, {"k": 8.0, "largest_stable_lr": 0.4}),
        ("more_samples", {"wasted": 1}, {"wasted": 0}),
        ("unreached_milestones", {"unreached": 1}, {"milestones": (3.0,)}),
        ("over_budget", {"overspent": 1}, {"overspent": 0}),
        ("rough_gain", {"rule": "adascale", "rough_noise": True}, {"rule": "adascale"}),
        ("rough_gain", {"rule": "adascale", "rough_noise": True}, {"rule": "linear", "rough_noise": True}),
    ],
)
def test_each_warning_fires_on_its_side_of_the_line_only(code: str, fires: dict[str, Any], holds: dict[str, Any]) -> None:
    assert codes(**fires) == [code]
    assert codes(**holds) == []


def test_every_warning_is_one_sentence_with_a_setting_and_its_value() -> None:
    bad: dict[str, Any] = {"family": "adam", "k": 64.0, "global_batch": 9000, "warmup_steps": 1, "total_steps": 9, "unreached": 2}
    found = cautions(Facts(**(vars(FINE) | bad | {"dropped": 5000, "wasted": 7, "overspent": 9})))
    assert len({c.code for c in found}) == len(found) == 9
    for c in found:
        assert re.search(r"; .*set [a-z_]+\.[a-z_]+: \S", c.message), c.message
        assert "\n" not in c.message


ADVISED: list[tuple[str, int, dict[str, Any]]] = [
    ("short_warmup", 16, {}),
    ("short_warmup", 64, {}),
    ("short_warmup", 4, {"scaling": {"rule": "legw", "warmup_samples": 500}}),
    ("short_warmup", 4, {"schedule": {"epochs": 10, "shape": "wsd", "decay_fraction": 0.9}, "scaling": {"warmup_samples": 900}}),
    ("short_warmup", 4, {"schedule": {"epochs": 10, "shape": "step", "milestones": [2]}, "scaling": {"warmup_samples": 640}}),
    ("short_warmup", 4, {"optim": ADAMW, "scaling": {"warmup_samples": 1000}}),
    ("short_adam_warmup", 4, {"optim": ADAMW, "scaling": {"rule": "none", "warmup_samples": 64_000}}),
    ("short_adam_warmup", 4, {"optim": ADAMW, "scaling": {"rule": "none", "warmup_samples": 100_000}, "schedule": {"epochs": 100}}),
    ("short_adam_warmup", 2, {"optim": ADAMW | {"betas": [0.9, 0.95]}, "scaling": {"rule": "none", "warmup_samples": 0}}),
    ("past_noise_scale", 16, {"scaling": {"noise_scale": 700, "warmup_samples": 60_000}, "recipe": {"samples": 10**6}}),
    ("past_headroom", 16, {"scaling": {"rule": "linear", "largest_stable_lr": 0.5}}),
    ("past_headroom", 16, {"scaling": {"rule": "linear", "largest_stable_lr": 0.15}}),
    ("past_headroom", 64, {"scaling": {"rule": "sqrt", "largest_stable_lr": 0.11}, "batch": {"reference": 8, "per_gpu": 64}}),
    ("past_headroom", 16, {"scaling": {"rule": "surge", "noise_scale": 900, "largest_stable_lr": 0.11}}),
    ("adam_linear", 4, {"optim": ADAMW}),
    ("few_steps", 16, {}),
    ("unknown_headroom", 16, {}),
    ("dropped_samples", 48, {"batch": {"reference": 64, "per_gpu": 64, "last": "drop"}}),
    ("more_samples", 16, {"scaling": {"rule": "noise", "noise_scale": 500, "warmup_samples": 9000}}),
    ("over_budget", 4, {"scaling": {"rule": "adascale", "noise_scale": 90, "budget_samples": 110_000}}),
    ("rough_gain", 4, {"scaling": {"rule": "adascale"}, "backend": {"name": "fsdp"}}),
    ("rough_gain", 4, {"scaling": {"rule": "adascale"}, "backend": {"name": "zero0"}}),
    ("unreached_milestones", 1, {"schedule": {"epochs": 10, "shape": "step", "milestones": [5, 10, 30]}}),
    ("unreached_milestones", 1, {"schedule": {"epochs": 10, "shape": "step", "milestones": [30, 20]}}),
]


@pytest.mark.parametrize(("code", "gpus", "sections"), ADVISED, ids=[f"{code}-{gpus}" for code, gpus, _ in ADVISED])
def test_what_a_warning_advises_is_a_plan_without_it(code: str, gpus: int, sections: dict[str, Any]) -> None:
    """The setting and value of each remedy, laid over the run file as a flag would be: a valid plan, and nobody is warned again."""

    def warnings(over: dict[str, dict[str, Any]]) -> dict[str, str]:
        tree: dict[str, dict[str, Any]] = {
            "recipe": {"samples": 10_000},
            "batch": {"reference": 64, "per_gpu": 64},
            "optim": {"lr": 0.1, "momentum": 0.9},
            "scaling": {"rule": "linear", "warmup_epochs": 1},
            "schedule": {"epochs": 10},
        }
        tree |= sections
        for section, values in over.items():
            kept = dict(tree.get(section, {}))
            for group in EXCLUSIVE:
                if any(name.partition(".")[2] in values for name in group if name.startswith(section)):
                    kept = {k: v for k, v in kept.items() if f"{section}.{k}" not in group}
            tree[section] = kept | values
        if "shape" in over.get("schedule", {}):
            tree["schedule"].pop("milestones", None)
        return {c.code: c.message for c in plan(decode(tree), World(gpus)).warnings}

    message = warnings({})[code]
    over: dict[str, dict[str, Any]] = {}
    found = re.findall(r"([a-z_]+)\.([a-z_]+): (\[[^]]*\]|[\w.+-]+)", message.partition("; ")[2].replace(", or", ""))
    assert found, message
    for section, name, value in found:
        over.setdefault(section, {})[name] = yaml.safe_load(value)
    assert code not in warnings(over), (message, over)


def test_no_warning_advises_what_is_in_force() -> None:
    """A language model at 2 GPUs was told to set scaling.betas: half_life, which rule adam had set."""
    optim = {"name": "adamw", "lr": 2e-3, "betas": [0.9, 0.99]}
    batch = {"reference": 16, "per_gpu": 16}
    scaling = {"rule": "adam", "warmup_samples": 2000}
    for betas in (None, "half_life", "half_life_both", "sde", "keep"):
        p = made(World(2), optim=optim, batch=batch, scaling=scaling | {"betas": betas}, schedule={"samples": 10_000})
        text = " ".join(c.message for c in p.warnings)
        assert "half_life" not in text
        assert p.betas is not None
        need = max(100, round(2 / (1 - p.betas[1]))) * 32
        assert f"set scaling.warmup_samples: {need}" in text
    scaling = {"rule": "sqrt", "warmup_samples": 12_800}
    (found,) = [c.message for c in made(World(8), optim=optim, batch=batch, scaling=scaling).warnings if "half_life" in c.message]
    assert found.endswith("2/(1-beta2) = 200 (Ma & Yarats 2021); set scaling.betas: half_life")


@pytest.mark.parametrize(
    ("rule", "gpus", "noise", "tried"),
    [
        ("linear", 16, 300.0, "--batch.total 256, or --scaling.rule sqrt"),
        ("sqrt", 16, 300.0, "--batch.total 256"),
        ("linear", 48, 300.0, "--batch.total 240, or --scaling.rule sqrt"),
        ("linear", 16, None, "--scaling.rule sqrt"),
        ("linear", 16, 1e6, "--scaling.rule sqrt"),
        ("sqrt", 8, None, "--scaling.warmup_samples 51200"),
        ("sqrt", 64, None, "--optim.lr 0.05"),
        ("none", 64, 300.0, "--optim.lr 0.05"),
    ],
)
def test_a_rate_that_is_too_high_is_answered_by_a_flag_that_is_not_in_force(
    rule: str, gpus: int, noise: float | None, tried: str
) -> None:
    p = made(World(gpus), scaling={"rule": rule, "warmup_epochs": 1})
    assert too_high(p, noise, 0).endswith(f"; try {tried}")
    assert ("spike" in too_high(p, noise, 0), "1 spike so far" in too_high(p, noise, 1)) == (False, True)


def test_people_are_shown_two_warnings_and_programs_all(capsys: pytest.CaptureFixture[str]) -> None:
    p = made(World(64), optim={"name": "adamw", "lr": 1e-3})
    assert len(p.to_json()["warnings"]) > 2
    print_plan(p)
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning [")]
    assert [line.split("]")[0] for line in shown] == ["warning [adam_linear", "warning [short_warmup"]
    print_plan(p, known={"adam_linear"})
    assert "adam_linear" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("world", "micro", "backend", "rough"),
    [(1, 64, "ddp", True), (1, 16, "ddp", False), (2, 32, "ddp", False), (2, 32, "zero0", True), (2, 16, "fsdp", True)],
)
def test_adascale_warns_where_a_step_does_not_show_two_batches(world: int, micro: int, backend: str, rough: bool) -> None:
    batch = {"reference": 16, "total": 64, "micro": micro}
    planned = made(World(world), batch=batch, scaling={"rule": "adascale"}, backend={"name": backend})
    assert ("rough_gain" in [w.code for w in planned.warnings]) == rough


def test_a_plan_warns_of_its_own_numbers() -> None:
    found = {c.code: c.message for c in made(World(64), optim={"name": "adamw", "lr": 1e-3}).warnings}
    assert "k = 64" in found["adam_linear"]
    assert found["short_warmup"].startswith("only 3 warm-up steps")
    assert "25 steps" in found["few_steps"]


@pytest.mark.parametrize(
    ("environ", "where"),
    [
        ({}, Place(0, 0, 1, 1)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, Place(0, 0, 1, 1)),
        ({"RANK": "9", "LOCAL_RANK": "1", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}, Place(9, 1, 16, 2)),
        ({"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}, Place(1, 1, 2, 1)),
    ],
)
def test_a_process_finds_its_place_by_the_launchers_variables(environ: dict[str, str], where: Place) -> None:
    assert place(environ) == where


def test_a_plan_is_decided_once() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        made().global_batch = 1  # type: ignore[misc]
