"""The real wandb against a stand-in for its service: online, resumed, stopped from the web page, and in every kind of outage."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.cli import main
from tests.dist.workers import patient
from tests.dist.workers.wandb_run import POINTS
from tests.support.faults.launching import Launch
from tests.support.faults.launching import run_file as faulty
from tests.support.processes import LIMIT_S, ROOT, environ, run_command
from tests.support.wandb_server import Server

LOSSES = [1 / n for n in range(1, POINTS + 1)]


@pytest.fixture
def server() -> Iterator[Server]:
    """A service that answers."""
    found = Server()
    yield found
    found.close()


def env(url: str, *, healthy: bool = True) -> dict[str, str]:
    """The environment of a run that logs to `url`. `healthy`: the service is there, and is waited for on a busy machine too."""
    found = environ() | {"WANDB_BASE_URL": url, "WANDB_API_KEY": "0" * 40, "WANDB_ERROR_REPORTING": "false"}
    return found | ({patient.ASKED: "yes"} if healthy else {})


def feed(folder: Path, url: str, *more: str, healthy: bool = False) -> subprocess.Popen[str]:
    """Start the worker that feeds the watcher."""
    argv = [sys.executable, "-m", "tests.dist.workers.wandb_run", str(folder), *more]
    return subprocess.Popen(
        argv, cwd=folder, env=env(url, healthy=healthy), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def told(process: subprocess.Popen[str]) -> tuple[dict[str, float], str]:
    """(the times it took, all it printed)."""
    output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, output
    return json.loads(output.split("TOLD ")[1].splitlines()[0]), output


def sync(folder: Path, server: Server) -> None:
    """What the message tells one to do."""
    argv = [str(Path(sys.executable).parent / "wandb"), "sync", "--include-online", *map(str, folder.glob("wandb/*run-*"))]
    done = subprocess.run(argv, cwd=folder, env=env(server.url), capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def losses(server: Server, folder: Path) -> list[float]:
    """The losses that the service has."""
    rows = server.rows((folder / "wandb_id").read_text())
    return [row["train/loss"] for row in rows if "train/loss" in row]


def test_online_every_point_arrives_and_nothing_else_and_the_terminal_says_where(server: Server, tmp_path: Path) -> None:
    _, output = told(feed(tmp_path, server.url, healthy=True))
    run = (tmp_path / "wandb_id").read_text()
    assert output.splitlines().count(f"W&B    {server.url}/lab/widebatch/runs/{run}") == 2, "at the start and at the end"
    assert server.ended[run] == 0
    assert server.preempted == set()
    assert losses(server, tmp_path) == LOSSES
    assert not [row for row in server.rows(run) if "train/none" in row]
    alerts = [(alert["title"], alert["severity"]) for alert in server.alerts]
    assert alerts == [("resumed", "INFO"), ("spike", "WARN"), ("dead", "ERROR")], "once each, and what is no alert not at all"
    shown = {"command", "uncommitted_changes", "parameters", "trained_parameters", "device", "environment"}
    assert set(server.config[run]) - {"_wandb"} == {"run", "plan", "commit"} | shown
    assert server.summary[run]["end/reason"] == "complete"


@pytest.mark.parametrize(("reason", "status"), [("guard", 3), ("failed", 1), ("stop_requested", 75)])
def test_the_service_is_told_how_the_run_ended(reason: str, status: int, server: Server, tmp_path: Path) -> None:
    told(feed(tmp_path, server.url, "", reason, healthy=True))
    run = (tmp_path / "wandb_id").read_text()
    assert server.ended[run] == status
    assert (run in server.preempted) == (reason == "stop_requested")


OUTAGES = ("closed port", "black hole", 429, 500)


@pytest.mark.parametrize("outage", OUTAGES)
def test_without_the_service_the_run_goes_on_and_nothing_is_lost(outage: str | int, server: Server, tmp_path: Path) -> None:
    away = Server()
    url = away.url
    with socket.socket() as closed:  # bound, so that nobody else can have the port, and closed, as nobody listens
        closed.bind(("127.0.0.1", 0))
        if outage == "closed port":
            url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        elif outage == "black hole":
            away.mute = True
        else:
            away.fails = int(outage)
        _, output = told(feed(tmp_path, url))
    assert "W&B cannot be reached" in output
    assert output.count("W&B    offline: send it later with `wandb sync") == 2, "at the start and at the end"
    sync(tmp_path, server)
    assert losses(server, tmp_path) == LOSSES


def test_a_service_that_dies_half_way_ends_nothing(server: Server, tmp_path: Path) -> None:
    dying, half = Server(), tmp_path / "half"
    process = feed(tmp_path, dying.url, str(half))
    while not Path(f"{half}.reached").exists():
        assert process.poll() is None
    dying.mute = True
    half.touch()
    told(process)
    sync(tmp_path, server)
    assert losses(server, tmp_path) == LOSSES


def run_file(folder: Path, **run: Any) -> Path:
    """A run of digits that logs online."""
    tree = {
        "recipe": {"use": "digits", "width": 4},
        "batch": {"reference": 32, "total": 32},
        "optim": {"lr": 0.01},
        "scaling": {"warmup_samples": 0},
        "schedule": {"samples": 960},
        "checkpoint": {"every_samples": 160},
        "watch": {"wandb": "online", "every_steps": 5},
        "run": {"dir": str(folder / "run")} | run,
    }
    (folder / "run.yaml").write_text(json.dumps(tree))
    return folder / "run.yaml"


def begun_only(folder: Path) -> None:
    """A segment as it is left where all processes are killed before a record of it is on disk."""
    run = (folder / "wandb_id").read_text()
    left = folder / "wandb" / f"offline-run-20200101_000000-{run}" / f"run-{run}.wandb"
    left.parent.mkdir()
    left.write_bytes(next(folder.glob("wandb/*run-*/*.wandb")).read_bytes()[:7])


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_resumed_run_goes_on_in_its_w_and_b_run_and_drops_no_point(mode: str, server: Server, tmp_path: Path) -> None:
    """Also points whose samples have been seen before: the newest checkpoint is gone, so five steps are told twice.

    Between the starts there was one that was killed before it wrote anything to W&B.
    """
    for limit in (15, None):
        path = run_file(tmp_path, stop_after_steps=limit)
        done = subprocess.run(
            [sys.executable, "-m", "tests.dist.workers.patient", str(path), "--watch.wandb", mode],
            cwd=tmp_path,
            env=env(server.url),
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        if limit:
            for file in max((tmp_path / "run" / "checkpoints").iterdir()).iterdir():
                file.write_bytes(b"gone")
            begun_only(tmp_path / "run")
        if mode == "offline":
            assert done.stderr.count("W&B    offline: send it later with `wandb sync") == 2
    if mode == "offline":
        sync(tmp_path / "run", server)
    assert len(server.config) == 1
    rows = server.rows((tmp_path / "run" / "wandb_id").read_text())
    windows = [row["progress/samples"] for row in rows if "train/loss" in row]
    told_twice = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert windows == [line["samples"] for line in told_twice if line["event"] == "window"]
    assert len(windows) > len(set(windows))


def synced(folder: Path, server: Server) -> list[dict[str, Any]]:
    """The windows that the service has of an offline run after `wandb sync`: those of the journal, all and in order."""
    sync(folder / "run", server)
    (rows,) = [[row for row in server.rows(run) if "train/loss" in row] for run in server.config]
    told = [json.loads(line) for line in (folder / "run" / "events.jsonl").read_text().splitlines()]
    assert [row["progress/samples"] for row in rows] == [line["samples"] for line in told if line["event"] == "window"]
    return rows


def test_a_roll_back_leaves_what_was_before_it_in_the_history_and_an_axis_that_never_runs_back(
    server: Server, tmp_path: Path
) -> None:
    tree = json.loads(run_file(tmp_path).read_text())
    tree["recipe"] = {"use": f"{ROOT}/tests/dist/workers/ruinous.py:Ruinous"}
    tree |= {"batch": {"reference": 16, "total": 16}, "optim": {"lr": 0.05, "momentum": 0.9}, "schedule": {"samples": 1424}}
    tree |= {"guard": {"policy": "protect", "spike": "note"}, "checkpoint": {"every_samples": 480}}
    tree["watch"]["wandb"] = "offline"
    (tmp_path / "run.yaml").write_text(json.dumps(tree))
    run_command([sys.executable, "-m", "harness", "run.yaml"], tmp_path)
    rows = synced(tmp_path, server)
    samples, trained, backs = ([row[name] for row in rows] for name in ROLLED)
    assert samples != sorted(samples), "the run went back"
    assert trained == sorted(set(trained))
    assert (backs[0], backs[-1], backs) == (0, 1, sorted(backs))


ROLLED = ("progress/samples", "progress/samples_trained", "stability/rollbacks")


def test_a_restart_out_of_memory_goes_on_in_the_same_history(server: Server, tmp_path: Path) -> None:
    path = faulty(tmp_path, faults="memory@7:1", watch={"wandb": "offline"})
    launch = Launch(path)
    try:
        assert launch.wait() == 0, launch.text()
    finally:
        launch.end()
    assert "with micro-batch 2" in launch.text()
    rows = synced(tmp_path, server)
    assert [row["batch/micro_samples"] for row in rows] == sorted([row["batch/micro_samples"] for row in rows], reverse=True)
    assert {row["batch/micro_samples"] for row in rows} == {4, 2}
    assert rows[-1]["reliability/restarts"] == 1


def test_a_trial_of_an_agent_is_the_agent_s_run_in_the_sweep_s_project(server: Server, tmp_path: Path) -> None:
    """With the sweep's arguments as `${args_no_hyphens}` gives them; the run file says another project and another rate."""
    tree = json.loads(run_file(tmp_path, stop_after_steps=5).read_text())
    tree["watch"] = {"project": "mine", "every_steps": 5}
    (tmp_path / "run.yaml").write_text(json.dumps(tree))
    trainer = [sys.executable, "-m", "tests.dist.workers.patient", "run.yaml"]
    server.sweep = {"command": [*trainer, "${args_no_hyphens}"]}
    server.trials = [{"type": "run", "run_id": "trial1", "program": "", "args": {"optim.lr": {"value": 0.005}}}]
    argv = [str(Path(sys.executable).parent / "wandb"), "agent", "--count", "1", "lab/theirs/sweep1"]
    done = subprocess.run(argv, cwd=tmp_path, env=env(server.url), capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(server.config) == ["trial1"], done.stdout + done.stderr
    assert server.config["trial1"]["run"]["value"]["optim"]["lr"] == 0.005
    sent = server.upserts["trial1"]
    assert (sent["entity"], sent["project"], sent["sweep"], sent["displayName"]) == ("lab", "theirs", "sweep1", "run")
    assert server.rows("trial1")


def test_an_agent_runs_the_grid_that_sweep_writes(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = json.loads(run_file(tmp_path, stop_after_steps=5).read_text())
    tree["watch"] = {"every_steps": 5}
    tree["run"].pop("dir", None)
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(tree))
    grid = ["--batches", "8..16", "--rules", "none,sqrt", "--seeds", "2", "--wandb-sweep", "--optim.weight_decay", "0.01"]
    assert main(["sweep", str(path), *grid]) == 0
    sweep = yaml.safe_load(capsys.readouterr().out)
    assert sweep["metric"] == {"name": "eval/loss", "goal": "minimize"}
    values = {name: one["values"] for name, one in sweep["parameters"].items()}
    assert values == {"scaling.rule": ["none", "sqrt"], "batch.total": [8, 16], "run.seed": [0, 1]}
    assert sweep["command"][:2] == ["widebatch", "train"]
    server.sweep = {"command": [sys.executable, "-m", "tests.dist.workers.patient", *sweep["command"][2:]]}
    trial = {"scaling.rule": "sqrt", "batch.total": 16, "run.seed": 1}
    server.trials = [{"type": "run", "run_id": "t1", "program": "", "args": {name: {"value": v} for name, v in trial.items()}}]
    argv = [str(Path(sys.executable).parent / "wandb"), "agent", "--count", "1", "lab/theirs/sweep1"]
    done = subprocess.run(argv, cwd=tmp_path, env=env(server.url), capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    run = server.config["t1"]["run"]["value"]
    assert (run["batch"]["total"], run["scaling"]["rule"], run["run"]["seed"]) == (16, "sqrt", 1)
    assert run["optim"]["weight_decay"] == 0.01


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--rules", "none,sqrt+optim.clip=1"], "--rules: has a rule with a setting of its own (optim.clip)"),
        (["--run.dir", "one"], "run.dir: is one, which all runs of the sweep would share"),
        (["--checkpoint.dir", "one"], "checkpoint.dir: is one, which all runs of the sweep would share"),
        (["--metric", "eval/score"], "--metric: eval/score does not say which way is better"),
    ],
)
def test_what_a_grid_of_w_and_b_cannot_hold_is_said(
    argv: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = json.loads(run_file(tmp_path, stop_after_steps=5).read_text())
    tree["run"].pop("dir", None)
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(tree))
    assert main(["sweep", str(path), "--batches", "8..16", "--wandb-sweep", *argv]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow  # wandb asks every 15 s
def test_the_stop_button_of_the_web_page_is_a_clean_stop_with_a_checkpoint(server: Server, tmp_path: Path) -> None:
    tree = json.loads(run_file(tmp_path).read_text()) | {"schedule": {"samples": 100_000_000}}
    tree["checkpoint"] = {}
    (tmp_path / "run.yaml").write_text(json.dumps(tree))
    server.stopped = True
    argv = [sys.executable, "-m", "tests.dist.workers.patient", str(tmp_path / "run.yaml")]
    done = subprocess.run(argv, cwd=tmp_path, env=env(server.url), capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 75, done.stdout + done.stderr
    assert "stop_requested after" in done.stdout
    assert list((tmp_path / "run" / "checkpoints").iterdir())


def test_no_secret_reaches_the_run_folder(server: Server, tmp_path: Path) -> None:
    canary = "5ec4e7" * 6 + "abcd"
    path = run_file(tmp_path, stop_after_steps=5)
    argv = [sys.executable, "-m", "tests.dist.workers.patient", str(path)]
    done = subprocess.run(
        argv, cwd=tmp_path, env=env(server.url) | {"WANDB_API_KEY": canary}, capture_output=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0
    assert not [f for f in tmp_path.rglob("*") if f.is_file() and canary.encode() in f.read_bytes()]
