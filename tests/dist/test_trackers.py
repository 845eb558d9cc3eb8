"""Other trackers, read back with their own readers: a run that was stopped and resumed is one run there, with every point."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from harness.config.loader import decode
from harness.telemetry.events import Ended, Noticed
from harness.watch.trackers import TrackerWatcher, flat
from tests.support.processes import run_command

NEEDED = {"tensorboard": "tensorboard", "mlflow": "mlflow", "trackio": "trackio"}
HERE = [pytest.param(n, marks=pytest.mark.skipif(find_spec(m) is None, reason=f"{m} is not installed")) for n, m in NEEDED.items()]
WATCH = {"wandb": "off", "every_steps": 5, "project": "my project", "name": "first try", "histograms": True}
READERS = {
    "tensorboard": """
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
read = EventMultiplexer().AddRunsFromDirectory(str(run / "tensorboard"))
read.Reload()
(name,) = read.Runs()
tags = read.Runs()[name]
told = {
    "project": name.split("/")[0], "name": name.split("/")[1],
    "points": [(s.step, s.value) for s in read.Scalars(name, "train/loss")],
    "config": read.Tensors(name, "config/text_summary")[0].tensor_proto.string_val[0].decode(),
    "notices": [t for t in tags["tensors"] if t.startswith("notice/")],
    "histograms": sorted(tags["histograms"]) or sorted(t for t in tags["tensors"] if t.startswith("weights/")),
}
""",
    "mlflow": """
import mlflow
client = mlflow.MlflowClient(f"sqlite:///{run.resolve()}/mlflow/mlflow.db")
(experiment,) = client.search_experiments(filter_string="name = 'my project'")
(one,) = client.search_runs([experiment.experiment_id])
told = {
    "project": experiment.name, "name": one.info.run_name,
    "points": [(m.step, m.value) for m in client.get_metric_history(one.info.run_id, "train/loss")],
    "config": json.dumps(one.data.params), "status": one.info.status,
    "notices": [t for t in one.data.tags if t.startswith("notice.")],
}
""",
    "trackio": """
import os
os.environ["TRACKIO_DIR"] = str(run.resolve() / "trackio")
import trackio
(one,) = trackio.Api().runs("my project")
from trackio.sqlite_storage import SQLiteStorage
rows = SQLiteStorage.get_logs(one.project, one.name, run_id=one.id)
told = {
    "project": one.project, "name": one.name, "config": json.dumps(one.config, default=str),
    "points": [(r["step"], r["train/loss"]) for r in rows if "train/loss" in r],
    "notices": sorted({n for r in rows for n in r if n.startswith("notice/")}),
}
""",
}


def read_back(tracker: str, here: Path) -> dict[str, Any]:
    """What the tracker's own reader finds."""
    code = f"import json, pathlib\nrun = pathlib.Path('run')\n{READERS[tracker]}\nprint('TOLD ' + json.dumps(told))"
    found: dict[str, Any] = json.loads(run_command([sys.executable, "-c", code], here).split("TOLD ")[1].splitlines()[0])
    return found


@pytest.mark.parametrize("tracker", HERE)
def test_a_run_that_was_stopped_and_resumed_is_one_run_there(tracker: str, tmp_path: Path) -> None:
    tree = {
        "recipe": {"use": "digits", "width": 4},
        "batch": {"reference": 32, "total": 32},
        "optim": {"lr": 0.01},
        "schedule": {"samples": 1280},
        "checkpoint": {"every_samples": 320},
        "watch": WATCH | {"trackers": [tracker]},
        "run": {"dir": "run"},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(tree))
    argv = [sys.executable, "-m", "launch", "train", "run.yaml"]
    run_command([*argv, "--run.stop_after_steps", "20"], tmp_path)
    run_command(argv, tmp_path)
    journal = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    windows = [(line["samples"], line["train/loss"]) for line in journal if line["event"] == "window"]
    notices = {line["code"] for line in journal if line["event"] == "notice"}
    told = read_back(tracker, tmp_path)
    assert (told["project"].replace("_", " "), told["name"].replace("_", " ")) == ("my project", "first try")
    assert [step for step, _ in told["points"]] == [samples for samples, _ in windows]
    assert [value for _, value in told["points"]] == pytest.approx([loss for _, loss in windows], rel=1e-6)
    assert "run.optim.lr" in told["config"]
    assert "0.01" in told["config"]
    assert {n.split("/")[1 if "/" in n else 0].removeprefix("notice.") for n in told["notices"]} >= notices
    assert told.get("status", "FINISHED") == "FINISHED"
    if tracker == "tensorboard":
        assert told["histograms"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "run.yaml"], "nothing is written beside the run folder"


def test_a_config_is_flattened() -> None:
    tree = {"run": {"optim": {"lr": 0.1, "betas": [0.9, 0.95]}, "name": None, "deep": {"a": {"b": True}}}}
    assert flat(tree) == {"run.optim.lr": 0.1, "run.optim.betas": "[0.9,0.95]", "run.deep.a.b": True}


@pytest.mark.filterwarnings("ignore")
def test_a_name_cannot_lead_out_of_the_run_folder(tmp_path: Path) -> None:
    watch = decode(
        {
            "batch": {"reference": 32, "total": 32},
            "optim": {"lr": 0.1},
            "schedule": {"epochs": 1},
            "watch": {"name": "../../x", "project": "a b"},
        }
    ).watch
    (tmp_path / "run").mkdir()
    watcher = TrackerWatcher("tensorboard", watch, tmp_path / "run")
    watcher(Noticed(0, 0, "resumed", "from a checkpoint"))
    watcher(Ended(0, 0, "complete", ""))
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert [p.name for p in (tmp_path / "run" / "tensorboard" / "a_b").iterdir()] == ["_.._x"]
