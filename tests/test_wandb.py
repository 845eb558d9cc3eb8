"""The real wandb against a stand-in for its service: online, resumed, stopped from the web page, and in every kind of outage."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.watch.git import commit
from tests.dist.processes import ROOT, environ, run_command
from tests.dist.wandb_run import POINTS
from tests.wandb_server import Server

LOSSES = [1 / n for n in range(1, POINTS + 1)]


@pytest.fixture
def server() -> Iterator[Server]:
    """A service that answers."""
    found = Server()
    yield found
    found.close()


def env(url: str) -> dict[str, str]:
    """The environment of a run that logs to `url`."""
    return environ() | {"WANDB_BASE_URL": url, "WANDB_API_KEY": "0" * 40, "WANDB_ERROR_REPORTING": "false"}


def feed(folder: Path, url: str, *more: str) -> subprocess.Popen[str]:
    """Start the worker that feeds the watcher."""
    argv = [sys.executable, "-m", "tests.dist.wandb_run", str(folder), *more]
    return subprocess.Popen(argv, cwd=folder, env=env(url), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def told(process: subprocess.Popen[str]) -> tuple[dict[str, float], str]:
    """(the times it took, all it printed)."""
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return json.loads(output.split("TOLD ")[1].splitlines()[0]), output


def sync(folder: Path, server: Server) -> None:
    """What the message tells one to do."""
    argv = [str(Path(sys.executable).parent / "wandb"), "sync", "--include-online", *map(str, folder.glob("wandb/*run-*"))]
    done = subprocess.run(argv, cwd=folder, env=env(server.url), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def losses(server: Server, folder: Path) -> list[float]:
    """The losses that the service has."""
    rows = server.rows((folder / "wandb_id").read_text())
    return [row["train/loss"] for row in rows if "train/loss" in row]


def test_online_every_point_arrives_and_nothing_else(server: Server, tmp_path: Path) -> None:
    told(feed(tmp_path, server.url))
    run = (tmp_path / "wandb_id").read_text()
    assert losses(server, tmp_path) == LOSSES
    assert not [row for row in server.rows(run) if "train/none" in row]
    assert [alert["title"] for alert in server.alerts] == ["spike", "dead"], "once each, and what is no alert not at all"
    config = server.config[run]
    assert set(config) - {"_wandb"} == {"run", "plan", "commit"}
    assert server.summary[run]["end/reason"] == "complete"


OUTAGES = ("closed port", "black hole", 429, 500)


@pytest.mark.parametrize("outage", OUTAGES)
def test_without_the_service_the_run_goes_on_and_nothing_is_lost(outage: str | int, server: Server, tmp_path: Path) -> None:
    away = Server()
    url = away.url
    if outage == "closed port":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{free.getsockname()[1]}"
    elif outage == "black hole":
        away.mute = True
    else:
        away.fails = int(outage)
    times, output = told(feed(tmp_path, url))
    assert "W&B is out of reach" in output
    assert "logging offline; send it later with `wandb sync" in output
    assert times["start_s"] < 15, "it waited for a service that was not there"
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


def test_a_resumed_run_goes_on_in_its_w_and_b_run_and_drops_no_point(server: Server, tmp_path: Path) -> None:
    """Also points whose samples have been seen before: the newest checkpoint is gone, so five steps are told twice."""
    for limit in (15, None):
        path = run_file(tmp_path, stop_after_steps=limit)
        done = subprocess.run(
            [sys.executable, "-m", "harness", str(path)],
            cwd=tmp_path,
            env=env(server.url),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        if limit:
            for file in max((tmp_path / "run" / "checkpoints").iterdir()).iterdir():
                file.write_bytes(b"gone")
    assert len(server.config) == 1
    rows = server.rows((tmp_path / "run" / "wandb_id").read_text())
    windows = [row["progress/samples"] for row in rows if "train/loss" in row]
    told_twice = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert windows == [line["samples"] for line in told_twice if line["event"] == "window"]
    assert len(windows) > len(set(windows))


@pytest.mark.slow  # wandb asks every 15 s
def test_the_stop_button_of_the_web_page_is_a_clean_stop_with_a_checkpoint(server: Server, tmp_path: Path) -> None:
    tree = json.loads(run_file(tmp_path).read_text()) | {"schedule": {"samples": 100_000_000}}
    tree["checkpoint"] = {}
    (tmp_path / "run.yaml").write_text(json.dumps(tree))
    server.stopped = True
    argv = [sys.executable, "-m", "harness", str(tmp_path / "run.yaml")]
    done = subprocess.run(argv, cwd=tmp_path, env=env(server.url), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 75, done.stdout + done.stderr
    assert "stop_requested after" in done.stdout
    assert list((tmp_path / "run" / "checkpoints").iterdir())


def test_no_secret_reaches_the_run_folder(server: Server, tmp_path: Path) -> None:
    canary = "5ec4e7" * 6 + "abcd"
    path = run_file(tmp_path, stop_after_steps=5)
    argv = [sys.executable, "-m", "harness", str(path)]
    done = subprocess.run(
        argv, cwd=tmp_path, env=env(server.url) | {"WANDB_API_KEY": canary}, capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 0
    assert not [f for f in tmp_path.rglob("*") if f.is_file() and canary.encode() in f.read_bytes()]


def test_the_commit_is_read_without_git(tmp_path: Path) -> None:
    told_by_git = run_command(["git", "rev-parse", "HEAD"], ROOT).strip()
    assert commit(ROOT / "harness" / "watch") == told_by_git
    assert commit(tmp_path) is None
