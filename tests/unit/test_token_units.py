"""The same run in samples and in tokens is the same plan, and what cannot be converted is refused by name."""

import re
from typing import Any

import pytest

from harness.config.errors import UserError
from harness.config.loader import decode
from harness.plan.plan import Plan, plan
from harness.plan.world import World
from harness.watch.plan_table import print_plan


def planned(world: int = 4, **sections: dict[str, Any]) -> Plan:
    """A language model with rows of 128 tokens."""
    tree: dict[str, Any] = {
        "recipe": {"use": "bytes_lm", "context": 128},
        "batch": {"reference": 16, "total": 64},
        "optim": {"name": "adamw", "lr": 2e-3, "weight_decay": 0.1},
        "scaling": {"warmup_samples": 1000},
        "schedule": {"samples": 100_000},
    }
    return plan(decode(tree | sections), World(world))


def test_the_same_run_in_samples_and_in_tokens_is_the_same_plan() -> None:
    rate = {"shape": "step", "gamma": 0.5}
    in_samples = planned(schedule={"samples": 100_000, "milestones": [40_000, 80_000]} | rate)
    batch, tokens = {"reference": 16, "total_tokens": "8192"}, {"tokens": "12.8M", "milestones": ["5.12M", "10.24M"]}
    assert planned(batch=batch | {"total_tokens": 8192}, schedule=tokens | rate) == in_samples
    per_parameter = tokens | {"tokens_per_parameter": 20}
    del per_parameter["tokens"]
    stated = {"use": "mine.py:Mine", "sample_tokens": 128, "parameters": "0.64M"}
    assert planned(recipe=stated, batch=batch | {"total_tokens": 8192}, schedule=per_parameter | rate) == in_samples


def test_a_plan_tells_samples_and_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    p = planned(batch={"reference": 16, "total_tokens": 8200}, schedule={"tokens": "12.8M"})
    tree = p.to_json()
    assert (p.global_batch, tree["global_batch_tokens"]) == (64, 8192)
    assert (p.total_samples, tree["total_tokens"]) == (100_000, 12_800_000)
    assert "to the nearest sample" in p.sources["global_batch"]
    print_plan(p)
    text = " ".join(capsys.readouterr().out.split())
    assert re.search(r"global_batch_tokens 8,192 ", text)
    assert re.search(r"total_tokens 12,800,000 ", text)


def test_a_run_without_tokens_has_none_in_its_plan() -> None:
    p = planned(recipe={"use": "digits", "samples": 1000})
    assert (p.sample_tokens, p.to_json()["total_tokens"]) == (None, None)
    assert planned(recipe={"use": "mine.py:Mine", "context": 128}).sample_tokens is None, "a knob of another recipe may be anything"


@pytest.mark.parametrize(
    ("sections", "setting", "said"),
    [
        ({"recipe": {"use": "digits"}, "schedule": {"tokens": "1M"}}, "recipe.sample_tokens", "schedule.tokens: 1,000,000"),
        ({"recipe": {"use": "digits"}, "batch": {"reference": 16, "total_tokens": 8192}}, "recipe.sample_tokens", "total_tokens"),
        ({"schedule": {"tokens_per_parameter": 20}}, "recipe.parameters", "such as 124M"),
        ({"batch": {"reference": 16, "total_tokens": 8320}}, "batch.total_tokens", "nearest: 8192, 8704"),
        ({"batch": {"reference": 16, "total_tokens": 8192, "total": 64}}, "batch", "exactly one"),
        ({"schedule": {"tokens": "1M", "samples": "1M"}}, "schedule", "exactly one"),
        ({"schedule": {"tokens": 50}}, "schedule.tokens", "less than one sample"),
        ({"schedule": {"tokens": "9" * 400 + "T"}}, "schedule.tokens", "more than can be counted"),
        ({"schedule": {"samples": 10**400}}, "schedule.samples", "more than can be counted"),
        (
            {"recipe": {"sample_tokens": 128, "parameters": "1M"}, "schedule": {"tokens_per_parameter": 1e308}},
            "schedule.tokens_per_parameter",
            "too many to count",
        ),
    ],
)
def test_what_cannot_be_converted_is_refused_by_name(sections: dict[str, Any], setting: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        planned(**sections)
    assert caught.value.setting == setting
    assert said in str(caught.value)


def test_where_a_recipe_has_no_tokens_the_reasons_say_so() -> None:
    sources = planned(recipe={"use": "digits"}).to_json()["sources"]
    assert {sources[name] for name in ("global_batch_tokens", "sample_tokens", "total_tokens")} == {
        "none: recipe.sample_tokens is not set"
    }
    assert [name for name, reason in sources.items() if "None" in reason] == []
