"""The dashboard, other trackers, the verdict and the box of a failure."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness.plan.config import Config
from harness.plan.decode import decode
from harness.plan.errors import UserError
from harness.plan.plan import plan
from harness.plan.world import World
from harness.stats.events import Ended, Evaluated, Event, Noticed, Shown, Started
from harness.stats.metrics import METRICS
from harness.stats.verdict import verdict
from harness.train import train
from harness.watch.console import Terminal
from harness.watch.dashboard import SECTIONS, X, save, workspace
from harness.watch.journal import Journal, to_line
from harness.watch.trackers import TrackerWatcher
from launch.cli import main
from tests.dist.processes import ROOT, run_command, run_ranks
from tests.wandb_server import Server

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
    shown = {name for panels in SECTIONS.values() for panel in panels for name in panel} | {X}
    assert shown <= {m.name for m in METRICS}
    assert list(SECTIONS) == ["Scaling", "Loss", "Throughput", "Stability", "Reliability"]


def test_it_is_saved_to_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    save(workspace("lab", "digits"))
    spec = json.loads(server.views[-1]["spec"])
    assert [section["name"] for section in spec["section"]["panelBankConfig"]["sections"]][:5] == list(SECTIONS)
    server.close()


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_has_every_window(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    watcher = TrackerWatcher("tensorboard", tmp_path)
    told = events(digits())
    for event in told:
        watcher(event)
    folder = next(p.parent for p in tmp_path.rglob("events.out*") if "loss" in p.read_bytes().decode(errors="ignore"))
    read = EventAccumulator(str(folder))
    read.Reload()
    assert [point.step for point in read.Scalars("train/loss")] == [32, 192, 352, 512, 640]


def test_an_unknown_tracker_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"watch.trackers: 'tensorbord' is no tracker of Accelerate's"):
        TrackerWatcher("tensorbord", tmp_path)


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
    """Read back with W&B's own reader. Null on a CPU: what needs a known peak, a baseline, or an accuracy."""
    log = min(offline.glob("wandb/offline-run-*/*.wandb"))
    text = run_command([str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json", str(log)], offline)
    shown = {name for panels in SECTIONS.values() for panel in panels for name in panel}
    absent = {name for name in shown if f'"{name}"' not in text and f'\\"{name}\\"' not in text}
    assert absent == {"throughput/mfu_pct", "throughput/scaling_efficiency_pct", "eval/accuracy_pct"}


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
    end = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()][-1]
    assert (end["event"], end["reason"]) == ("end", "failed")
    assert "on rank 0" in end["message"]
    assert "another rank is gone" in end["message"]
    assert "the run failed" in output


def window(samples: int, loss: float) -> dict[str, Any]:
    """A line of a journal."""
    return {"samples": samples, "train/loss": loss}


def test_the_verdict_is_at_equal_samples() -> None:
    reference = [window(n * 100, 2.0) for n in range(1, 21)]
    held = verdict([window(n * 200, 2.02) for n in range(1, 6)], reference)
    assert str(held) == "the rule held: loss 2.0200 against 2.0000 (+1.0 %) at 1,000 samples"
    broke = verdict([window(n * 200, 2.5) for n in range(1, 6)], reference)
    assert str(broke).startswith("the rule did not hold: loss 2.5000 against 2.0000 (+25.0 %)")
    assert verdict([], reference) is None


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
    assert "the rule held: loss" in out.getvalue()
    assert "(+0.0 %) at 640 samples" in out.getvalue()


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
    for part in ("what", "where", "before", "nonfinite", "done", "go on", "widebatch train"):
        assert part in box
