"""What published laws say: their own numbers, a caution past them, and a suggestion that is a plan."""

import re
import shlex
from pathlib import Path

import pytest

from harness.config.loader import decode
from harness.plan.plan import plan
from harness.plan.published_laws import best_batch, best_weight_decay, step_law
from harness.plan.world import World
from launch.cli import main

RUN = """
recipe: {use: mine.py:Mine, sample_tokens: 1024, parameters: 124M}
batch: {reference: 32, total: 32}
optim: {name: adamw, lr: 1.0e-3}
schedule: {tokens_per_parameter: 20}
scaling: {warmup_fraction: 0.1}
"""


def test_the_laws_are_the_papers() -> None:
    """Step Law at 1B parameters and 100B tokens; Bergsma's timescale is about 1 at one token for each parameter, 0.03 at 1,000."""
    prior = step_law(1e9, 1e11)
    assert prior.batch == pytest.approx(0.58 * 10 ** (11 * 0.571))
    assert prior.lr == pytest.approx(1.79 * 10 ** (-9 * 0.713 + 11 * 0.307))
    for per, timescale in ((1, 1.084), (1000, 0.0284)):
        decay = best_weight_decay(1e9, per * 1e9, 1e6, 1e-3)
        assert 1e6 / (1e-3 * decay * per * 1e9) == pytest.approx(timescale, rel=0.01)


def test_a_raised_batch_far_past_the_published_best_is_cautioned_until_a_noise_scale_is_measured() -> None:
    def codes(total: int, tokens: str = "2B", **scaling: float) -> dict[str, str]:
        tree = {
            "recipe": {"sample_tokens": 1024},
            "batch": {"reference": 32, "total": total},
            "optim": {"name": "adamw", "lr": 1e-3},
            "scaling": {"warmup_fraction": 0.1, **scaling},
            "schedule": {"tokens": tokens},
        }
        return {w.code: w.message for w in plan(decode(tree), World(1)).warnings}

    limit = int(4 * best_batch(2e9) / 1024)
    assert "past_published_batch" not in codes(limit)
    message = codes(2 * limit)["past_published_batch"]
    assert "D^0.38 to D^0.57" in message
    advised = re.search(r"set batch\.total: (\d+)", message)
    assert advised
    assert "past_published_batch" not in codes(int(advised[1]))
    assert "past_published_batch" not in codes(2 * limit, noise_scale=1e9)
    assert "past_published_batch" not in codes(4096, "50M"), "no law was fitted there"


def test_a_suggestion_has_reasons_sources_and_what_to_measure_and_its_flags_are_a_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(RUN)
    assert main(["plan", str(file), "--suggest"]) == 0
    said = capsys.readouterr().out
    for part in ("2503.04715", "2505.13738", "8 GPUs", "hours", "lr-range", "an assumption"):
        assert part in said
    flags = shlex.split(said.partition("as flags: ")[2])
    assert main(["plan", str(file), "--gpus", "8", *flags]) == 0
    assert "past_published_batch" not in capsys.readouterr().out


def test_without_a_size_nothing_is_suggested(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(RUN.replace(", parameters: 124M", "").replace("tokens_per_parameter: 20", "tokens: 1B"))
    assert main(["plan", str(file), "--suggest"]) == 2
    assert "recipe.parameters: missing" in capsys.readouterr().err
