"""The branch test: what is compared, what is called safe, and real branches of a real run."""

import json
import sys
from pathlib import Path

import pytest

from harness.plan.decode import load
from harness.plan.errors import UserError
from harness.stats.branches import Branch, largest_safe, rows, smoothed
from launch.branch import read_ratios
from tests.dist.processes import ROOT, run_command


def test_the_smoothed_loss_is_the_mean_per_sample_of_the_second_half() -> None:
    losses = [(100, 9.0), (150, 4.0), (175, 2.0), (200, 1.0), (300, 50.0)]
    assert smoothed(losses, 100, 200) == pytest.approx(1.5)
    assert smoothed([(100, 9.0), (200, 3.0)], 100, 200) == 3.0, "one window over both halves counts"
    assert smoothed([(100, 9.0)], 100, 200) is None


def branches(*losses: float | None) -> list[Branch]:
    return [Branch(2**n, 32 * 2**n, 0.1, loss) for n, loss in enumerate(losses)]


def test_the_largest_safe_ratio_has_no_worse_one_below_it() -> None:
    assert largest_safe(branches(1.0, 1.005, 1.009, 1.02), eps=0.01).ratio == 4
    assert largest_safe(branches(1.0, 1.05, 1.0), eps=0.01).ratio == 1
    assert largest_safe(branches(1.0, 0.9, None), eps=0.01).ratio == 2
    assert largest_safe(branches(1.0, 0.9, 1.0), eps=0.01).ratio == 2, "no worse than every smaller batch, not than the first"
    with pytest.raises(ValueError, match="base"):
        largest_safe(branches(None, 1.0), eps=0.01)
    assert [r[-1] for r in rows(branches(1.0, 1.005, 1.05, None), eps=0.01)] == ["", "safe", "safe", "worse", "died"]


def test_ratios_are_whole_and_the_base_is_always_there() -> None:
    assert read_ratios("8,2") == [1, 2, 8]
    for text in ("", "1", "0,2", "a", "1.5"):
        with pytest.raises(UserError, match="--ratios"):
            read_ratios(text)


def test_branches_go_on_from_the_checkpoint_at_their_own_batch_and_rate(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    start = [sys.executable, "-m", "launch"]
    settings = ["--watch.wandb", "'off'", "--scaling.warmup_epochs", "1", "--batch.per_gpu", "64", "--run.stop_after_steps", "40"]
    run_command([*start, "train", str(ROOT / "configs" / "digits.yaml"), "--run.dir", str(run), *settings], ROOT)
    told = run_command([*start, "branch", str(run), "--ratios", "4", "--samples", "2048", "--out", str(out)], ROOT)
    assert "largest safe batch at 2,560 samples" in told
    record = json.loads((out / "branch.json").read_text())
    base, wide = record["branches"]
    assert (base["batch"], wide["batch"]) == (64, 256)
    assert wide["lr"] == pytest.approx(2 * base["lr"])
    for name, batch in (("ratio-1", 64), ("ratio-4", 256)):
        lines = [json.loads(x) for x in (out / "trials" / name / "events.jsonl").read_text().splitlines()]
        steps = [x for x in lines if x["event"] == "step"]
        assert steps[0]["samples"] == 2560 + batch, "it goes on where the run stopped"
        assert steps[-1]["samples"] == 2560 + 2048
        assert steps[0]["train/lr"] == pytest.approx(base["lr"] * (batch / 64) ** 0.5)
    assert load(out / "run.yaml").batch.total in (64, 256)
    assert (run / "checkpoints").exists()


def test_a_run_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    run_command([sys.executable, "-m", "launch", "branch", str(tmp_path)], ROOT, status=2)
