"""A batch that changes on purpose: where, to what, and what the rate does."""

import math
from typing import Any

import pytest

from harness.config.errors import UserError
from harness.config.loader import decode
from harness.plan.batch_schedule import Stage
from harness.plan.plan import Plan, plan
from harness.plan.world import World


def planned(batch: dict[str, Any], schedule: dict[str, Any], world: int = 2) -> Plan:
    """A plan at the reference batch of 32, lr 0.1, without warm-up."""
    tree: dict[str, Any] = {
        "recipe": {"use": "digits", "samples": 1000, "sample_tokens": 10},
        "batch": {"reference": 32, "total": 32} | batch,
        "optim": {"lr": 0.1, "momentum": 0.9},
        "schedule": schedule,
    }
    return plan(decode(tree), World(world, device="cpu"))


STEP = {"samples": 9000, "shape": "step", "milestones": [3000, 6000]}


def test_smith_s_batch_grows_where_the_rate_would_fall() -> None:
    p = planned({"grow": "decay", "most": 320}, STEP)
    assert p.stages == (Stage(0, 32), Stage(3000, 320, 10.0))
    assert [p.batch_at(s) for s in (0, 2999, 3000, 9000)] == [32, 32, 320, 320]
    assert [p.lr_at(s) for s in (0, 2999, 3000, 6000)] == pytest.approx([0.1, 0.1, 0.1, 0.01]), "the second drop has no room"


def test_seesaw_gives_half_of_each_drop_to_the_batch() -> None:
    p = planned({"grow": "seesaw", "most": 1000}, {"samples": 100_000, "shape": "cosine"})
    assert [s.batch for s in p.stages] == [32, 64, 128, 256, 512]
    for number, stage in enumerate(p.stages[1:], 1):
        assert p.lr_at(stage.start) == pytest.approx(0.1 / math.sqrt(2) ** number, rel=1e-3)
        assert p.schedule.lr(stage.start, 32) == pytest.approx(0.1 / 2**number, rel=1e-3)


def test_a_ramp_climbs_in_equal_increments_over_equal_lengths() -> None:
    p = planned({"grow": "ramp", "ramp_start": 8, "ramp_increment": 8, "ramp_samples": 600}, {"samples": 9000})
    assert p.stages == (Stage(0, 8), Stage(200, 16), Stage(400, 24), Stage(600, 32))
    assert {p.lr_at(s) for s in range(0, 9000, 50)} == {0.1}


def test_a_ramp_follows_the_rule_where_it_is_told_to_and_says_so() -> None:
    ramp = {"grow": "ramp", "ramp_start": 8, "ramp_increment": 8, "ramp_samples": 600}
    kept, ruled = planned(ramp, {"samples": 9000}), planned(ramp | {"stage_lr": "rule"}, {"samples": 9000})
    assert [ruled.lr_at(s.start) for s in ruled.stages] == pytest.approx([0.025, 0.05, 0.075, 0.1]), "linear, for SGD"
    assert "does not follow the rule" in kept.sources["stages"]
    assert "follows the batch by the rule" in ruled.sources["stages"]


def test_explicit_steps_are_stages_in_samples_or_tokens_and_lr_follows_the_rule() -> None:
    given: dict[str, Any] = {"total": None, "steps": [[0, 32], ["30k tokens", 64], [6000, "1280 tokens"]]}
    p = planned(given, {"samples": 9000})
    assert p.stages == (Stage(0, 32), Stage(3000, 64, 2.0), Stage(6000, 128, 4.0))
    assert [p.lr_at(s) for s in (0, 2999, 3000, 6000)] == pytest.approx([0.1, 0.1, 0.2, 0.4])
    assert (p.global_batch, p.total_steps) == (32, 94 + 47 + 24)
    assert {s.lr for s in planned(given | {"stage_lr": "keep"}, {"samples": 9000}).stages} == {1.0}


def test_steps_are_counted_over_the_stages() -> None:
    p = planned({"grow": "ramp", "ramp_start": 8, "ramp_increment": 24, "ramp_samples": 100}, {"samples": 1000})
    position = steps = 0
    while position < 1000:
        assert p.samples_at(steps) == position
        position, steps = position + p.batch_at(position), steps + 1
    assert p.total_steps == steps == 13 + 28


def test_the_plan_of_a_stretch_keeps_the_passes_and_grows_the_accumulation() -> None:
    p = planned({"micro": 8}, {"samples": 1000}).at_batch(128)
    assert (p.global_batch, p.micro_batch, p.accumulate, p.ratio) == (128, 8, 8, 4.0)
    assert planned({"micro": 8}, {"samples": 1000}).at_batch(12).micro_batch == 6


@pytest.mark.parametrize(
    ("batch", "schedule", "setting"),
    [
        ({"grow": "decay"}, STEP, "batch.most"),
        ({"grow": "decay", "most": 64}, {"samples": 1000}, "batch.grow"),
        ({"grow": "decay", "most": 640}, STEP | {"gamma": 0.3}, "schedule.gamma"),
        ({"grow": "ramp", "ramp_start": 8, "ramp_increment": 8}, {"samples": 1000}, "batch.ramp_samples"),
        ({"grow": "ramp", "ramp_start": 8, "ramp_increment": 10, "ramp_samples": 9}, {"samples": 1000}, "batch.ramp_increment"),
        ({"grow": "ramp", "ramp_start": 7, "ramp_increment": 5, "ramp_samples": 9}, {"samples": 1000}, "batch.ramp_start"),
        ({"ramp_start": 8}, {"samples": 1000}, "batch.ramp_start"),
        ({"most": 16}, {"samples": 1000}, "batch.most"),
        ({"total": None, "steps": [[0, 32], [500, 33]]}, {"samples": 1000}, "batch.steps"),
        ({"total": None, "steps": [[0, 33]]}, {"samples": 1000}, "batch.steps"),
        ({"total": None, "steps": [[5, 32]]}, {"samples": 1000}, "batch.steps"),
        ({"total": None, "steps": [[0, 32], [500, 64], [400, 128]]}, {"samples": 1000}, "batch.steps"),
        ({"total": None, "steps": [[0, 32], [1000, 64]]}, {"samples": 1000}, "batch.steps"),
        ({"total": None, "steps": [[0, 32], ["5 epochs", 64]]}, {"samples": 1000}, "batch.steps"),
        ({"steps": [[0, 32]]}, {"samples": 1000}, "batch"),
        ({"total": None, "steps": [[0, 32]], "grow": "noise", "most": 64}, {"samples": 1000}, "batch.grow"),
        ({"stage_lr": "rule"}, {"samples": 1000}, "batch.stage_lr"),
    ],
)
def test_what_cannot_be_is_refused_by_name(batch: dict[str, Any], schedule: dict[str, Any], setting: str) -> None:
    with pytest.raises(UserError) as caught:
        planned(batch, schedule)
    assert caught.value.setting == setting
