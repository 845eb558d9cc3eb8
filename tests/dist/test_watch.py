"""The dashboard, other trackers, the verdict and the box of a failure."""

import io
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness.analysis.loss_verdict import Verdict, verdict
from harness.config.errors import UserError
from harness.config.loader import decode
from harness.config.schema import Config
from harness.plan.plan import plan
from harness.plan.world import World
from harness.supervision.resume_command import resume_command
from harness.telemetry.events import Ended, Evaluated, Event, Noticed, Shown, Started, Windowed
from harness.telemetry.metric_catalog import METRICS
from harness.training.loop import train
from harness.watch.console import Terminal
from harness.watch.journal_writer import Journal, to_line
from harness.watch.trackers import TrackerWatcher
from harness.watch.wandb_workspace import SECTIONS, metrics_shown, save, workspace
from launch.cli import main
from tests.support.processes import ROOT, run_command, run_ranks
from tests.support.wandb_server import Server

GOLDEN = ROOT / "tests" / "golden" / "dashboard.json"


def digits(**sections: Any) -> Config:
    """A short run."""
    tree: dict[str, Any] = {
        "recipe": {"use": "digits", "width": 4},
        "batch": {"reference": 32, "total": 32},
        "optim": {"lr": 0.01},
        "schedule": {"samples": 640},
        "watch": {"wandb": "off", "every_steps": 5},
    }
    return decode(tree | sections)


def events(c: Config) -> list[Event]:
    """All it tells."""
    return list(train(c, plan(c, World(1, device="cpu")), cpu=True))


def stripped(tree: Any) -> Any:
    """Without the ids that wandb-workspaces draws."""
    if isinstance(tree, dict):
        return {k: stripped(v) for k, v in tree.items() if k not in ("__id__", "id", "name", "ref")}
    return [stripped(v) for v in tree] if isinstance(tree, list) else tree


def test_the_dashboard_is_as_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dashboard", "lab/digits", "--dry-run"]) == 0
    assert stripped(json.loads(capsys.readouterr().out)) == json.loads(GOLDEN.read_text())


def test_its_panels_show_metrics_that_a_run_tells() -> None:
    assert metrics_shown() <= {m.name for m in METRICS}
    titles = [panel.title for panels in SECTIONS.values() for panel in panels]
    assert len(titles) == len(set(titles))
    assert not [title for title in titles if "/" in title.replace(" / ", "") and "TFLOP/s" not in title], "in words"


def test_without_a_key_it_is_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.com")
    assert main(["dashboard", "lab/digits"]) == 2
    told = "error: dashboard: there is no key for https://wandb.example.com; run `wandb login`, or set WANDB_API_KEY"
    assert capsys.readouterr().err == f"{told}; --dry-run needs none\n"


def test_it_is_saved_to_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    save(workspace("lab", "digits"))
    spec = json.loads(server.views[-1]["spec"])
    assert [section["name"] for section in spec["section"]["panelBankConfig"]["sections"]][1:-1] == list(SECTIONS)
    server.close()


def test_an_unknown_tracker_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"watch.trackers: 'tensorbord' is not a tracker that Accelerate has"):
        TrackerWatcher("tensorbord", digits().watch, tmp_path)


def test_examples_come_with_each_evaluation(tmp_path: Path) -> None:
    told = events(digits())
    shown = [e for e in told if isinstance(e, Shown)]
    assert len(shown) == sum(isinstance(e, Evaluated) for e in told) == 1
    assert [set(row) for row in shown[0].rows] == [{"image", "label", "guess"}] * 8
    line = to_line(shown[0])
    assert [set(row) for row in line["rows"]] == [{"label", "guess"}] * 8, "images stay out of the journal"


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of two ranks that log to W&B offline, with artifacts."""
    folder = tmp_path_factory.mktemp("offline")
    tree = {
        "recipe": {"use": "bytes_lm", "width": 16, "depth": 1, "heads": 2, "context": 32, "max_bytes": 12_000},
        "batch": {"reference": 32, "total": 32, "micro": 8},
        "optim": {"lr": 0.05, "momentum": 0.9},
        "schedule": {"samples": 1600},
        "checkpoint": {"every_samples": 400},
        "watch": {"wandb": "offline", "artifacts": True},
        "run": {"dir": str(folder / "run")},
    }
    (folder / "run.yaml").write_text(json.dumps(tree))
    run_ranks(2, ["harness", str(folder / "run.yaml")], folder)
    return folder / "run"


def test_w_and_b_has_every_metric_that_the_dashboard_s_panels_show(offline: Path) -> None:
    """Read back with W&B's own reader. Null here: what needs a known peak, a baseline, Adam's moments, a GPU
    or, of nodes, a run of more than a second."""
    log = min(offline.glob("wandb/offline-run-*/*.wandb"))
    text = run_command([str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json", str(log)], offline)
    shown = {name for name in metrics_shown() if not name.startswith("system/")}
    absent = {name for name in shown if f'"{name}"' not in text and f'\\"{name}\\"' not in text}
    assert absent == {
        "throughput/mfu_pct",
        "throughput/scaling_efficiency_pct",
        "batch/noise_scale_moments_samples",
    }


def test_a_checkpoint_s_manifest_is_an_artifact_on_request(offline: Path) -> None:
    log = min(offline.glob("wandb/offline-run-*/*.wandb")).read_bytes()
    assert b"manifest.json" in log
    assert str(offline / "checkpoints").encode() in log


def test_a_lost_rank_is_told_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "gone.py").write_text(
        "import os, signal\nfrom dataclasses import dataclass\nfrom harness.recipes.digits import Digits\n\n"
        "@dataclass(frozen=True)\nclass Gone(Digits):\n"
        "    def loss(self, model, batch):\n        Gone.calls = getattr(Gone, 'calls', 0) + 1\n"
        "        if os.environ.get('RANK') == '1' and Gone.calls == 30:\n            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().loss(model, batch)\n"
    )
    tree = {
        "recipe": {"use": f"{tmp_path}/gone.py:Gone", "width": 4},
        "batch": {"reference": 32, "total": 32},
        "optim": {"lr": 0.01},
        "schedule": {"epochs": 4},
        "scaling": {"warmup_samples": 0},
        "watch": {"wandb": "off", "every_steps": 5},
        "run": {"dir": str(tmp_path / "run")},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(tree))
    output = run_ranks(2, ["harness", str(tmp_path / "run.yaml")], tmp_path, status=1)
    journal = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    end, last = journal[-1], max(line["step"] for line in journal if line["event"] == "window")
    assert (end["event"], end["reason"]) == ("end", "failed")
    assert last < end["step"] < last + 5, "the step at which it happened, in the middle of a window"
    assert f"at step {end['step'] + 1} on rank 0" in end["message"]
    assert "another rank is gone" in end["message"]
    assert "the run failed" in output


def window(samples: int, loss: float) -> dict[str, Any]:
    """A line of a journal."""
    return {"samples": samples, "train/loss": loss}


def test_the_verdict_is_at_equal_samples() -> None:
    reference = [window(n * 100, 2.0) for n in range(1, 21)]
    held = verdict([window(n * 200, 2.02) for n in range(1, 6)], reference)
    assert str(held) == "matches the reference: training loss 2.0200 against 2.0000 (+1.0 %; chance: up to 0.0 %) at 1,000 samples"
    broke = verdict([window(n * 200, 2.5) for n in range(1, 6)], reference)
    assert str(broke).startswith("diverges from the reference: training loss 2.5000 against 2.0000 (+25.0 %;")
    assert verdict([], reference) is None
    above, below, zero = Verdict(-1.0, -2.0, 9), Verdict(-2.1, -2.0, 9), Verdict(0.0, 0.0, 9)
    assert (above.held, below.held, zero.held) == (False, True, True), "a loss may be negative, or nothing"
    assert (above.worse_pct, zero.worse_pct, Verdict(0.1, 0.0, 9).worse_pct) == (50.0, 0.0, math.inf)


def noisy(mean: float, spread: float, share: float = 0.0) -> list[dict[str, Any]]:
    """Windows whose training loss is near 0, and evaluations about `mean`, each as much above it as the next is below."""
    lines = [window(n * 100, 0.003 * (1 + share)) for n in range(1, 21)]
    return lines + [{"samples": n * 200, "eval/loss": mean + spread * (-1) ** n} for n in range(1, 11)]


def test_the_verdict_is_by_validation_and_not_where_the_loss_itself_varies_as_much() -> None:
    """The demo's training loss of 0.0038 against 0.0034 said that the rule did not hold."""
    assert str(verdict(noisy(0.101, 0.0, share=0.12), noisy(0.1, 0.0))).startswith("matches the reference: validation loss 0.1010")
    assert str(verdict(noisy(0.11, 0.005), noisy(0.1, 0.005))).startswith("cannot tell from the reference: validation loss")
    assert str(verdict(noisy(0.2, 0.005), noisy(0.1, 0.005))).startswith("diverges from the reference: validation loss 0.2050")
    once = [*noisy(0.1, 0.0)[:20], {"samples": 2000, "eval/loss": 0.11}]
    assert "chance: unknown" in str(verdict(once, noisy(0.1, 0.0)))
    assert Verdict(math.nan, 0.1, 9).answer == "diverges from"
    assert Verdict(2e15, 0.1, 9, band=0.1).short == "diverges (2e16 times)"


def test_the_end_says_whether_the_rule_held(tmp_path: Path) -> None:
    for name in ("reference", "mine"):
        (tmp_path / name).mkdir()
        journal = Journal(tmp_path / name / "events.jsonl")
        told = events(digits())
        for event in told:
            journal(event)
        journal.close()
    out = io.StringIO()
    terminal = Terminal(Console(file=out, width=200), show_plan=False, against=tmp_path / "reference" / "events.jsonl")
    started = next(e for e in told if isinstance(e, Started))
    terminal(Started(started.plan, {}, str(tmp_path / "mine"), 0, 0, 1, "cpu"))
    terminal(told[-1])
    assert "matches the reference: validation loss" in out.getvalue()
    assert "(+0.0 %; chance: unknown) at 640 samples" in out.getvalue()


def test_a_run_that_the_guard_stops_ends_in_a_box_that_says_all() -> None:
    c = digits(optim={"lr": 1e30}, guard={"budget": 2}, scaling={"rule": "none"})
    told = events(c)
    assert isinstance(told[-1], Ended)
    assert told[-1].reason == "guard"
    assert any(isinstance(e, Noticed) and e.code == "nonfinite" for e in told)
    out = io.StringIO()
    terminal = Terminal(Console(file=out, width=200), show_plan=False)
    for event in told:
        terminal(event)
    box = out.getvalue()[out.getvalue().index("the guard stopped the run") :]
    for part in ("what", "where", "before", "nonfinite", "done", "no checkpoint was written", "go on", "widebatch train"):
        assert part in box


@pytest.mark.parametrize("width", [80, 140])
def test_the_live_line_keeps_its_bar_and_the_time_left(width: int) -> None:
    out = io.StringIO()
    terminal = Terminal(Console(file=out, width=width, force_terminal=True, no_color=True), show_plan=False)
    for event in events(digits()):
        terminal(event)
        if isinstance(event, Windowed):
            terminal._draw()
    terminal.close()
    drawn = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]+", out.getvalue())]
    live = [line for line in drawn if line.startswith("train ") and "loss" in line]
    assert live
    for line in live:
        assert len(line) <= width
        assert "━" in line
        assert re.search(r"\d:\d\d:\d\d|-:--:--", line), line
    assert ("epoch" in live[-1]) == (width == 140)
    assert all(len(line) <= width for line in drawn), "notices are broken between words"


def test_the_command_to_go_on_keeps_the_number_of_ranks() -> None:
    c = digits()
    for world, device, said in (
        (World(1, 1, "cpu"), "cpu", "widebatch train"),
        (World(4, 1, "cpu", 1), "cpu", "train 'a b/run.yaml' --simulate-world 4"),
        (World(2, 1, "cpu"), "cpu", "launch 'a b/run.yaml' --gpus 0 --procs 2"),
        (World(8, 2), "cuda:0", "launch 'a b/run.yaml' --gpus 8 --nodes 2"),
    ):
        assert said in resume_command("a b", plan(c, world), device)
