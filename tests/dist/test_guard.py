"""A sample that is not a number, on one rank: no weight and no moment moves on any rank, and the journal says so."""

import math
from collections import Counter
from pathlib import Path

import pytest

from tests.dist.test_resume import expected_lr, journal, run_file, trained_ids
from tests.support.processes import run_ranks

POISON = 37


@pytest.mark.parametrize(("ranks", "fused"), [(1, "false"), (1, "true"), (2, "false")])
def test_nan_on_one_rank_skips_the_step_on_all(tmp_path: Path, ranks: int, fused: str) -> None:
    path = run_file(tmp_path, "total: 8")
    flags = ["--recipe.poison", str(POISON), "--recipe.fused", fused]
    output = run_ranks(ranks, ["harness", str(path), *flags], tmp_path)
    steps = journal(tmp_path, "step")
    bad = [s for s in steps if s["train/loss"] == "nan"]
    assert len(bad) == 4, "the sample comes once in each of four epochs"
    assert all(isinstance(s["train/loss"], float) and math.isfinite(s["train/loss"]) for s in steps if s not in bad)
    assert journal(tmp_path, "window")[-1]["stability/skipped_steps"] == 4
    assert output.count("[nonfinite]") == 4
    assert steps[-1]["train/loss"] < 0.5 * steps[0]["train/loss"]
    seen_before_last = steps[-2]["samples"] - 4 * 8
    plan = journal(tmp_path, "start")[0]["plan"]
    assert steps[-1]["train/lr"] == expected_lr(plan, seen_before_last), "skipped steps do not advance the schedule"
    assert trained_ids(tmp_path) == Counter(dict.fromkeys(range(101), 4))


def test_a_spent_budget_stops_the_run_with_status_3(tmp_path: Path) -> None:
    path = run_file(tmp_path, "total: 8")
    flags = ["--recipe.poison", str(POISON), "--guard.budget", "2"]
    output = run_ranks(1, ["harness", str(path), *flags], tmp_path, status=3)
    end = journal(tmp_path, "end")[-1]
    assert end["reason"] == "guard"
    assert "guard.budget 2" in end["message"]
    assert "guard.budget 2" in output
    assert not list((tmp_path / "run").glob("checkpoints/*/")), "a run that failed leaves no checkpoint of the failure"


def test_nonfinite_stop_stops_at_the_first(tmp_path: Path) -> None:
    path = run_file(tmp_path, "total: 8")
    flags = ["--recipe.poison", str(POISON), "--guard.nonfinite", "stop"]
    run_ranks(1, ["harness", str(path), *flags], tmp_path, status=3)
    assert sum(s["train/loss"] == "nan" for s in journal(tmp_path, "step")) == 1
