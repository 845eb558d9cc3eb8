"""lr-range: when a short run counts as unstable, how the edge is found, and the edge of a real recipe."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from harness.analysis.lr_range import PRECISION, instability, next_factor, tail_loss
from harness.analysis.run_outcome import Outcome
from harness.config.loader import load
from launch.lab.lr_range import words
from tests.support.processes import ROOT, run_command

GOOD = Outcome("complete", "", 100, 3200, (), ((1600, 2.0), (3000, 1.2), (3200, 1.0)), (), frozenset(), 1.0, 0, 1)


def test_a_run_is_stable_unless_something_says_otherwise() -> None:
    assert instability(GOOD) == ""
    assert tail_loss(GOOD) == pytest.approx(1.1)
    assert "stopped after 100 steps" in instability(replace(GOOD, reason="guard", message="diverged"))
    assert "not finite" in instability(replace(GOOD, nonfinite_steps=1))
    assert "divergence" in instability(replace(GOOD, notices=frozenset({"divergence", "resumed"})))
    assert instability(replace(GOOD, notices=frozenset({"resumed", "past_noise_scale"}))) == ""
    assert "3 spikes" in instability(replace(GOOD, spikes=3))
    assert "not finite" in instability(replace(GOOD, losses=((3200, math.nan),)))
    assert "rose from 2 to 20" in instability(replace(GOOD, losses=((32, 2.0), (1600, 20.0), (3200, 1.9))))
    assert "was at 1.9 and ended at 2.3" in instability(replace(GOOD, losses=((32, 2.33), (1600, 1.9), (3200, 2.3))))


@pytest.mark.parametrize("edge", [0.1, 0.9, 1.0, 3.0, 30.0, 1000.0])
def test_the_search_ends_with_the_edge_between_two_neighbours(edge: float) -> None:
    stable: dict[float, bool] = {}
    while (factor := next_factor(stable)) is not None:
        assert factor not in stable
        stable[factor] = factor <= edge
    low, high = max(f for f, held in stable.items() if held), min(f for f, held in stable.items() if not held)
    assert low <= edge < high
    assert high / low <= PRECISION * 1.001
    assert len(stable) < 20


def test_a_rate_that_never_breaks_or_never_holds_ends_the_search() -> None:
    for always in (True, False):
        stable: dict[float, bool] = {}
        while (factor := next_factor(stable)) is not None:
            stable[factor] = always
        assert len(stable) == 13


def test_a_hole_below_the_edge_is_the_edge() -> None:
    assert next_factor({1.0: True, 2.0: False, 4.0: True}) == pytest.approx(math.sqrt(2))


def test_the_headroom_is_said_in_batches() -> None:
    assert "linear scaling stays stable up to about k = 4 (batch 128), sqrt up to about k = 17" in words(4.2, 32, "sgd")
    assert "no headroom" in words(1.0, 32, "sgd")


@pytest.mark.slow
def test_the_edge_of_digits_is_found_and_handed_on(tmp_path: Path) -> None:
    """From optim.lr 0.5, which is over the edge: halving and bisection find it in a few trials."""
    out = tmp_path / "range"
    argv = ["lr-range", str(ROOT / "configs" / "digits.yaml"), "--optim.lr", "0.5", "--seeds", "1", "--samples", "3200"]
    told = run_command([sys.executable, "-m", "launch", *argv, "--out", str(out)], ROOT)
    evidence = json.loads((out / "evidence.json").read_text())
    assert 0.02 < evidence["largest_stable_lr"] < 0.5
    assert (evidence["batch"], evidence["optimizer"]) == (32, "sgd")
    assert "unstable" in told
    assert load(out / "run.yaml").scaling.largest_stable_lr == evidence["largest_stable_lr"]
    plain = run_command([sys.executable, "-m", "launch", *argv, "--out", str(out)], ROOT)
    assert "largest stable lr" in plain, "it is all there already"
