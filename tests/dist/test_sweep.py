"""The sweep: which runs it makes, what it says of their results, and that it resumes where it was stopped."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from harness.analysis.critical_batch import Fit, Regimes, fit, regimes
from harness.analysis.run_outcome import Outcome, Seen, outcome
from harness.analysis.sweep_results import Results, Row, from_json, largest_held, row, table, to_json, verdict
from harness.analysis.target_metric import Target, held_within, read_target
from harness.analysis.text_plot import Curve, Panel, as_text
from harness.config.errors import UserError
from harness.watch import plot_file as plot
from launch.lab.sweep import batches, choice, panels
from tests.support.processes import ROOT, run_command

ACCURACY = Target("eval/accuracy_pct", True, 90.0)


def made(rule: str, batch: int, seed: int, value: float | None, to_steps: int | None = None, noise: float = 300.0) -> Row:
    reason = "complete" if value is not None else "guard"
    to_samples = to_steps * batch if to_steps else None
    return Row(rule, batch, seed, reason, 1000, 64_000, value, to_steps, to_samples, noise, 1.0)


def swept(values: dict[tuple[str, int], list[float | None]]) -> Results:
    rows = [made(rule, batch, seed, v) for (rule, batch), found in values.items() for seed, v in enumerate(found)]
    return Results(tuple(rows), 32, Target("eval/accuracy_pct", True))


def curve(least_steps: float, least_samples: float, wanted: list[int]) -> Results:
    truth = Fit(least_steps, least_samples)
    rows = [made("sqrt", b, seed, 95.0, round(truth.steps(b)), noise=450.0) for b in wanted for seed in (0, 1)]
    return Results(tuple(rows), wanted[0], ACCURACY)


def test_batches_are_powers_of_two_times_the_first_or_a_list() -> None:
    assert batches("32..256") == [32, 64, 128, 256]
    assert batches("96,32") == [32, 96]
    for text in ("32..100", "0..4", "a", "64..32", "0,3", ""):
        with pytest.raises(UserError, match="--batches"):
            batches(text)


def test_a_target_says_which_way_is_better_or_is_refused() -> None:
    assert read_target("eval/accuracy_pct=97") == Target("eval/accuracy_pct", True, 97.0)
    assert read_target("eval/loss=0.3") == Target("eval/loss", False, 0.3)
    assert read_target("eval/bleu >= 30") == Target("eval/bleu", True, 30.0)
    for text in ("eval/bleu=30", "accuracy>=3", "eval/loss<=nan", "eval/loss<=", "eval/loss<3"):
        with pytest.raises(UserError, match="--target"):
            read_target(text)


def test_a_mean_holds_within_the_tolerance_or_within_its_own_noise() -> None:
    higher, lower = Target("eval/accuracy_pct", True), Target("eval/loss", False)
    assert held_within([97.6], [98.0], higher)
    assert not held_within([97.0], [98.0], higher)
    assert held_within([99.0], [98.0], higher), "better is as good"
    assert held_within([95.0, 99.0], [98.0, 98.2], higher), "the spread hides the difference"
    assert held_within([1.01], [1.0], lower)
    assert not held_within([1.03], [1.0], lower)
    assert not held_within([], [98.0], higher)


def test_the_fit_finds_the_curve_that_made_the_points() -> None:
    truth = Fit(100.0, 60_000.0)
    found = fit([(b, truth.steps(b)) for b in (32, 128, 512, 2048)])
    assert found is not None
    assert found.critical_batch == pytest.approx(600)
    assert found.least_steps == pytest.approx(100)
    assert fit([(32, 1000.0), (64, 500.0)]) is None, "two batches say nothing of a curve"
    assert fit([(32, 1000.0), (64, 500.0), (128, 240.0)]) is None, "faster than perfect has no least number of steps"


def test_regimes_end_where_samples_grow_and_where_steps_stop_to_fall() -> None:
    found = regimes({32: 1000, 64: 510, 128: 290, 256: 200, 512: 160, 1024: 155, 2048: 200})
    assert found == Regimes(128, 512, 2048)
    assert regimes({24: 1000, 48: 510, 96: 290}) == Regimes(64, 64, 64), "between two batches, along the curve through both"
    assert regimes({40: 1000, 80: 990}) == Regimes(40, 40, 80), "doublings of the smallest, where no two powers of two are there"
    assert regimes({32: 1000}) is None
    assert regimes({32: 1000, 48: 700}) is None, "less than a doubling says nothing of one"


@pytest.mark.parametrize("first", [16, 24, 32, 50])
@pytest.mark.parametrize("factor", [2, 2**0.5, 2**0.25, 3, 4, 8])
def test_what_a_larger_batch_saves_is_the_same_sentence_on_any_grid(first: int, factor: float) -> None:
    """A curve with critical batch 256: twice the batch saves a tenth of the steps up to 8 times that."""
    grid = sorted({round(first * factor**n) for n in range(60) if first * factor**n <= 16_384} | {16_384})
    lines = verdict(curve(1000, 256_000, grid))
    assert "past 2,048 twice the batch saves less than 10 % of the steps" in lines
    assert "perfect scaling up to batch 64: twice the batch, half the steps to accuracy_pct >= 90" in lines


def test_the_verdict_says_how_far_each_rule_holds_and_what_comes_after() -> None:
    results = swept(
        {
            ("none", 32): [98.0, 98.2],
            ("none", 128): [96.0, 96.2],
            ("linear", 32): [98.0, 98.2],
            ("linear", 128): [98.0, 98.0],
            ("linear", 512): [None, None],
            ("sqrt", 512): [97.9, None],
        }
    )
    lines = verdict(results)
    assert lines[0] == "none: holds up to batch 32; at 128: 2 points below the reference"
    assert lines[1] == "linear: holds up to batch 128; at 512: all died"
    assert lines[2].startswith("sqrt: holds at no batch of the sweep; at 512: 0.2 points below the reference, 1 of 2 died")
    assert largest_held(results, "linear") == 128
    assert choice(results) == ("linear", 128)


def test_a_hole_ends_what_holds() -> None:
    results = swept({("none", 32): [98.0], ("none", 64): [90.0], ("none", 128): [98.0]})
    assert largest_held(results, "none") == 32


def test_with_a_target_the_verdict_names_regimes_fit_and_noise_scale() -> None:
    lines = verdict(curve(1000, 600_000, [32, 128, 512, 2048, 8192]))
    text = "\n".join(lines)
    assert "perfect scaling up to batch 128" in text
    assert re.search(r"critical batch by the fit: (599|600|601) samples", text)
    assert "measured noise scale: 450 samples (median of the runs at batch 512), 0.75 times the fitted critical batch" in text


def test_a_seed_that_never_met_the_target_leaves_its_batch_out() -> None:
    results = curve(100, 60_000, [32, 128, 512])
    missed = tuple(replace(r, to_steps=None, to_samples=None) if (r.batch, r.seed) == (512, 1) else r for r in results.rows)
    lines = verdict(replace(results, rows=missed))
    assert "never met with every seed: batch 512" in lines
    assert any("not fitted" in line for line in lines)


def test_the_record_gives_the_results_back_and_the_table_shows_them() -> None:
    results = curve(100, 60_000, [32, 128, 512])
    record = json.loads(json.dumps(to_json(results, {"command": "x"})))
    assert from_json(record) == results
    assert record["fit"]["critical_batch"] == pytest.approx(600, rel=0.02)
    text = table(results)
    assert "95 ± 0" in text
    assert "steps to accuracy_pct >= 90" in text


def test_the_table_tells_samples_where_rules_differ_in_them() -> None:
    results = swept(
        {("linear", 32): [98.0, 98.0], ("linear", 512): [97.0, None], ("adascale", 32): [98.0], ("adascale", 512): [98.0]}
    )
    assert "samples" not in table(results)
    more = tuple(replace(r, samples=300_000) if (r.rule, r.batch) == ("adascale", 512) else r for r in results.rows)
    lines = table(replace(results, rows=more)).splitlines()
    assert lines[-2].split() == ["samples,", "linear", "64,000", "64,000"]
    assert lines[-1].split() == ["samples,", "adascale", "64,000", "300,000"]


def test_plots_are_files_or_text_and_which_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = panels(curve(100, 60_000, [32, 128, 512]))
    pytest.importorskip("matplotlib", reason="extra report is not installed")
    assert "plot:" in plot.save(shown, tmp_path / "sweep")
    assert (tmp_path / "sweep.svg").stat().st_size > 1000
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    text = plot.save(shown, tmp_path / "none")
    assert "matplotlib is not installed" in text
    assert "steps to accuracy_pct >= 90" in text


def test_a_plot_in_text_puts_the_largest_on_top_and_the_rightmost_at_the_right() -> None:
    panel = Panel("p", "batch", "loss", (Curve("a", ((1.0, 5.0, 0.0), (4.0, 1.0, 0.0), (16.0, 3.0, 0.0))),))
    lines = as_text(panel, width=9, height=3).splitlines()
    assert lines[1] == "5 |o"
    assert lines[2] == "  |        o"
    assert lines[3] == "1 |    o"
    assert as_text(Panel("p", "x", "y", ()), 9, 3) == "p: nothing to show"


def test_an_outcome_is_the_last_word_of_a_journal(tmp_path: Path) -> None:
    journal = tmp_path / "events.jsonl"
    assert outcome(journal) is None
    window = {"event": "window", "step": 2, "samples": 64, "train/loss": 1.0, "batch/noise_scale_samples": 40.0}
    evaluated = {"event": "eval", "step": 2, "samples": 64, "eval/loss": 0.5, "eval/x": "nan"}
    first = {"event": "start", "step": 0, "samples": 0}
    lines = [first, {"event": "step"}, window, window | {"samples": 128, "batch/noise_scale_samples": 60.0}, evaluated]
    journal.write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert outcome(journal) is None, "it has no end"
    with journal.open("a") as f:
        f.write(json.dumps({"event": "end", "reason": "complete", "message": "", "step": 2, "samples": 64}) + '\n{"cut')
    found = outcome(journal)
    assert found is not None
    assert found.last("eval/loss") == 0.5
    assert found.last("eval/x") is None
    assert (found.noise_scale(), found.noise_scale(until=64)) == (50.0, 40.0)
    with journal.open("a") as f:
        f.write("\n" + json.dumps(first) + "\n")
    assert outcome(journal) is None, "it goes on"


def test_a_target_is_met_at_the_first_evaluation_that_meets_it() -> None:
    seen = tuple(Seen(s, s * 32, {"eval/accuracy_pct": a}) for s, a in ((1, 50.0), (2, 91.0), (3, 89.0), (4, 95.0)))
    o = Outcome("complete", "", 4, 128, seen, (), ((64, 10.0), (128, 90.0)), frozenset(), 1.0, 0, 0)
    found = row("none", 32, 0, o, ACCURACY)
    assert (found.to_steps, found.to_samples, found.value, found.noise_scale) == (2, 64, 95.0, 10.0)


SETTINGS = ["--schedule.epochs", "2", "--scaling.warmup_epochs", "1", "--eval.every_epochs", "1", "--watch.every_steps", "50"]


def sweep(out: Path, *more: str, status: int = 0) -> str:
    argv = [sys.executable, "-m", "launch", "sweep", str(ROOT / "configs" / "digits.yaml"), "--out", str(out), *SETTINGS, *more]
    return run_command(argv, ROOT, status=status)


def test_a_sweep_trains_each_point_once_and_goes_on_with_more(tmp_path: Path) -> None:
    grid = ["--batches", "32,128", "--seeds", "1", "--metric", "eval/accuracy_pct"]
    assert len(sweep(tmp_path, *grid, "--rules", "none", "--list").splitlines()) == 2
    first = sweep(tmp_path, *grid, "--rules", "none,none+optim.lr=0.02", "--chain", "2")
    assert "4 points, 2 runs of their own" in first, "points with the same numbers share a run"
    assert (tmp_path / "run.yaml").exists()
    before = {f: f.stat().st_mtime_ns for f in tmp_path.glob("trials/*/events.jsonl")}
    second = sweep(tmp_path, *grid, "--rules", "none,linear", "--target", "eval/accuracy_pct>=50")
    assert "4 points, 3 runs of their own" in second
    assert {f: f.stat().st_mtime_ns for f in before} == before, "what is done is kept"
    record = json.loads((tmp_path / "sweep.json").read_text())
    assert [(t["rule"], t["batch"]) for t in record["trials"]] == [("none", 32), ("linear", 32), ("none", 128), ("linear", 128)]
    assert record["trials"][0]["value"] == record["trials"][1]["value"]
    assert all(t["samples"] == 2 * 1437 for t in record["trials"])
    told = sweep(tmp_path, *grid, "--rules", "none", "--optim.momentum", "0.5", status=2)
    assert "holds a trial with another optim.momentum" in told


def test_as_a_job_array_task_i_is_the_i_th_listed_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from launch.cli import main

    run = str(ROOT / "configs" / "digits.yaml")
    grid = ["sweep", run, "--out", str(tmp_path), "--batches", "32,128", "--seeds", "2", "--rules", "linear"]
    assert main([*grid, "--list"]) == 0
    listed = [Path(word) for word in capsys.readouterr().out.split() if word.endswith("run.yaml")]
    assert main([*grid, "--slurm", "--gpus", "1", "--partition", "gpu", "--at-once", "3"]) == 0
    script = (tmp_path / "array" / "job.sbatch").read_text()
    assert f"sbatch {tmp_path}/array/job.sbatch" in capsys.readouterr().out
    assert "#SBATCH --array=0-3%3\n" in script
    assert f"run={tmp_path}/array/$SLURM_ARRAY_TASK_ID\n" in script
    assert "#SBATCH --gpus-per-node=1\n" in script
    tasks = [tmp_path / "array" / str(i) / "run.yaml" for i in range(4)]
    assert [t.resolve() for t in tasks] == listed
    assert all((t.parent / "logs").is_dir() for t in tasks)
    for flags, told in (
        ([], "--gpus: missing"),
        (["--gpus", "2"], "--gpus: is 2, and with --slurm each run of a sweep has one GPU"),
    ):
        assert main([*grid, "--slurm", *flags]) == 2
        assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--batches", "32", "--rules", "linaer"], "did you mean linear"),
        (["--batches", "32", "--rules", "no ne"], "--rules"),
        (["--batches", "32", "--seeds", "0"], "--seeds"),
        (["--batches", "32", "--batch.per_gpu", "3"], "exactly one"),
    ],
)
def test_a_sweep_that_cannot_be_starts_nothing(
    flags: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from launch.cli import main

    assert main(["sweep", str(ROOT / "configs" / "digits.yaml"), "--out", str(tmp_path), *flags]) == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
