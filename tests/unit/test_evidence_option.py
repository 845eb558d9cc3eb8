"""What one run measured is in the next plan, with its source; what is no evidence is refused in words."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.plan.evidence import Evidence, as_flags, from_json, to_json
from launch.cli import main
from tests.support.journals import digits, start, steps, write

LR = Evidence(largest_stable_lr=0.1, batch=32, optimizer="sgd", source="lr-range of digits")


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    """A plan at k = 8."""
    tree: dict[str, Any] = {
        "recipe": {"use": "digits", "samples": 1437},
        "batch": {"reference": 32, "total": 256},
        "optim": {"name": "sgd", "lr": 0.02},
        "schedule": {"samples": 100_000},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def planned(run_file: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    """What `widebatch plan --json` says."""
    assert main(["plan", str(run_file), "--gpus", "1", "--json", *more]) == 0
    tree: dict[str, Any] = json.loads(capsys.readouterr().out)
    return tree


def codes(tree: dict[str, Any]) -> set[str]:
    """Of its warnings."""
    return {w["code"] for w in tree["warnings"]}


def test_a_run_s_noise_scale_is_in_the_next_plan_with_its_source(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = digits(tmp_path / "measured", 128, batch={"micro": 16})
    plain, measured = planned(run_file, capsys), planned(run_file, capsys, "--from", str(run), "--scaling.rule", "noise")
    journal = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    seen = [line["batch/noise_scale_samples"] for line in journal if line["event"] == "window"]
    assert plain["noise_scale"] is None
    assert min(s for s in seen if s) <= measured["noise_scale"] <= max(s for s in seen if s)
    assert f"measured in {run} (estimator passes" in measured["sources"]["noise_scale"]
    bn = measured["noise_scale"]
    assert measured["lr"] == pytest.approx(0.02 * (1 + bn / 32) / (1 + bn / 256))
    assert main(["report", str(run), "--json"]) == 0
    report = tmp_path / "report.json"
    report.write_text(capsys.readouterr().out)
    assert planned(run_file, capsys, "--from", str(report))["noise_scale"] == bn


def test_a_measured_headroom_takes_the_place_of_the_warning_that_nobody_knows_it(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "unknown_headroom" in codes(planned(run_file, capsys))
    (tmp_path / "evidence.json").write_text(json.dumps(to_json(LR)))
    tight = planned(run_file, capsys, "--from", str(tmp_path))
    assert {"past_headroom", "unknown_headroom"} & codes(tight) == {"past_headroom"}
    assert next(w["message"] for w in tight["warnings"] if w["code"] == "past_headroom").startswith("lr 0.16 is past 0.1,")
    assert tight["sources"]["largest_stable_lr"] == "lr-range of digits"
    roomy = planned(run_file, capsys, "--from", str(tmp_path), "--scaling.largest_stable_lr", "0.2")
    assert not {"past_headroom", "unknown_headroom"} & codes(roomy)


def test_a_run_s_own_evidence_and_its_journal_are_taken_together(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write(tmp_path / "run", [start(), *steps(1, 60, 1.0)])
    (run / "evidence.json").write_text(json.dumps(to_json(LR)))
    tree = planned(run_file, capsys, "--from", str(run))
    assert (tree["noise_scale"], tree["largest_stable_lr"]) == (50, 0.1)
    assert tree["sources"]["noise_scale"].startswith("lr-range of digits; measured in ")


def test_evidence_goes_out_and_in_again() -> None:
    assert from_json(json.loads(json.dumps(to_json(LR))), "x") == LR
    assert "noise_scale_samples" not in to_json(LR)
    assert as_flags(LR, "sgd", ["scaling.largest_stable_lr"]) == {}


DEAD = {"event": "notice", "step": 60, "samples": 600, "code": "divergence", "message": "it did"}


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ([start(), *steps(1, 60, 1.0), DEAD], "run died (divergence): its measurements are not used"),
        ([start(), *steps(1, 5, 1.0)], "only 0 of 0 windows at high lr have a noise scale"),
        ({"noise_scale_samples": -3, "source": "x"}, "noise_scale_samples: is -3; it must be > 0"),
        ({"noise_scale_samples": 3, "sauce": "x"}, "sauce"),
        ({"largest_stable_lr": 3, "optimizer": "adamw", "source": "x"}, "lr is of adamw, and the run file has optim.name: sgd"),
        ({"runs": [], "evidence": None}, "is a report of runs without a measured noise scale"),
        (["nothing"], "holds no evidence"),
    ],
)
def test_what_is_no_evidence_is_refused_in_words(
    what: Any, said: str, run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if isinstance(what, list) and isinstance(what[0], dict):
        place = write(tmp_path / "run", what)
    else:
        place = tmp_path / "some.json"
        place.write_text(json.dumps(what))
    assert main(["plan", str(run_file), "--gpus", "1", "--from", str(place)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1
