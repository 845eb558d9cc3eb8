"""find-batch: the search and the choice are pure; trials are real steps in real processes under a real limit of memory."""

import json
import sys
from pathlib import Path

import pytest

from harness.analysis.micro_batch_search import Tried, agreed, candidates, fastest, next_trial
from harness.config.errors import UserError
from harness.config.loader import load
from harness.plan.plan import plan
from harness.plan.world import World
from launch.lab.find_batch import size
from tests.support.processes import ROOT, run_command


def found(share: int, most: int) -> tuple[list[int], int | None]:
    """The trials of a search where micro-batches up to `most` fit, and the largest that did."""
    tried: dict[int, bool] = {}
    while (micro := next_trial(share, tried)) is not None:
        assert micro not in tried
        tried[micro] = micro <= most
    return list(tried), max((m for m, fits in tried.items() if fits), default=None)


def test_the_search_doubles_then_bisects_over_what_divides_the_share() -> None:
    assert found(256, 1000) == ([1, 2, 4, 8, 16, 32, 64, 128, 256], 256)
    assert found(256, 40) == ([1, 2, 4, 8, 16, 32, 64], 32)
    assert found(96, 40) == ([1, 2, 4, 8, 16, 32, 48], 32), "of 48, 64, 96 only divisors of 96 are tried"
    assert found(1, 0) == ([1], None)


@pytest.mark.parametrize("share", [1, 7, 60, 96, 360, 1000, 1024])
def test_the_search_finds_what_brute_force_finds_in_few_trials(share: int) -> None:
    options = candidates(share)
    for most in [0, *options]:
        trials, largest = found(share, most)
        assert largest == max((m for m in options if m <= most), default=None)
        assert len(trials) <= 2 * len(bin(share)) + 2


def test_a_micro_batch_fits_where_it_fits_on_every_rank() -> None:
    good = {"fits": True, "peak_bytes": 10, "base_bytes": 1, "samples_per_s": 5.0}
    assert agreed(4, [good, good | {"peak_bytes": 12, "samples_per_s": 4.0}]) == Tried(4, True, 12, 1, 4.0)
    assert not agreed(4, [good, {"fits": False, "problem": "out of memory"}]).fits
    assert not agreed(4, [good, None]).fits, "a rank that wrote nothing did not come to its end"


def test_the_fastest_is_taken_and_not_the_largest() -> None:
    tried = [Tried(m, True, 1, 1, rate) for m, rate in ((8, 90.0), (16, 99.0), (32, 100.0), (64, 80.0))] + [Tried(128, False)]
    chosen = fastest(tried)
    assert chosen is not None
    assert chosen.micro == 16, "within 2 % of the best, and half the memory"
    assert fastest([Tried(1, False)]) is None


def test_sizes_are_read_whole() -> None:
    assert size("1.5GiB") == 3 * 2**29
    for text in ("2GB", "2", "-1GiB", "1GiB; rm"):
        with pytest.raises(UserError, match="--memory"):
            size(text)


RUN = """
recipe: {use: bytes_lm, width: 256, depth: 2, heads: 4, context: 128, max_bytes: 200000}
batch: {reference: 64, total: 64}
optim: {name: adamw, lr: 1.0e-3}
scaling: {rule: none}
schedule: {samples: 6400}
"""


@pytest.mark.slow
def test_trials_under_a_limit_end_where_brute_force_ends(tmp_path: Path) -> None:
    """Two trials are enough to know the cost of a sample; the limit then lies between 4 and 8 samples."""
    run = tmp_path / "gpt.yaml"
    run.write_text(RUN.replace("64", "8"))
    argv = [sys.executable, "-m", "launch", "find-batch", str(run), "--gpus", "0", "--seconds", "0.01"]
    everything = run_command([*argv, "--memory", "64GiB", "--out", str(tmp_path / "all")], ROOT)
    assert "largest that fits: 8, the rank's whole share" in everything
    record = json.loads((tmp_path / "all" / "find-batch.json").read_text())
    peaks = {t["micro"]: t["peak_bytes"] for t in record["trials"]}
    assert list(peaks) == [1, 2, 4, 8]
    limit = (peaks[4] + peaks[8]) // 2
    told = run_command([*argv, "--memory", f"{limit // 1024}KiB", "--out", str(tmp_path / "some")], ROOT)
    assert "largest that fits: 4;" in told
    assert "8 does not fit (out of memory" in " ".join(told.split())
    chosen = load(tmp_path / "some" / "run.yaml")
    assert plan(chosen, World(1, 1, "cpu")).global_batch == 8
    again = run_command([*argv, "--memory", f"{limit // 1024}KiB", "--out", str(tmp_path / "some")], ROOT)
    assert "largest that fits: 4;" in again
    other = run_command([*argv, "--memory", "64GiB", "--out", str(tmp_path / "some")], ROOT, status=2)
    assert "another run file, world or limit" in other


@pytest.mark.slow
def test_ranks_agree_on_what_fits(tmp_path: Path) -> None:
    run = tmp_path / "gpt.yaml"
    run.write_text(RUN)
    argv = ["find-batch", str(run), "--gpus", "0", "--procs", "2", "--seconds", "0.01", "--memory", "64GiB"]
    told = run_command([sys.executable, "-m", "launch", *argv, "--out", str(tmp_path / "out")], ROOT)
    assert "largest that fits: 32, the rank's whole share" in told


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--gpus", "0"], "--memory"),
        (["--gpus", "0", "--memory", "2GB"], "--memory"),
        (["--gpus", "99"], "more than are here"),
        (["--gpus", "0", "--procs", "3", "--memory", "1GiB", "--batch.total", "32"], "nearest"),
    ],
)
def test_a_search_that_cannot_be_starts_nothing(flags: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    from launch.cli import main

    assert main(["find-batch", str(ROOT / "configs" / "digits.yaml"), *flags]) == 2
    assert told in capsys.readouterr().err
