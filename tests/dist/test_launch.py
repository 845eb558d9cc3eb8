"""The whole thing, for real: two processes under accelerate launch, on real data, told to the terminal, the journal and W&B."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.config.loader import load
from harness.plan.plan import plan
from harness.plan.run_files import run_files
from harness.plan.world import World
from harness.watch.plan_table import print_plan
from launch.processes.run_folder import warned, write
from tests.dist.test_resume import run_file, trained_ids
from tests.support.processes import LIMIT_S, ROOT, environ, run_command

DIGITS = str(ROOT / "configs" / "digits.yaml")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What `make demo` runs: (run folder, what it printed)."""
    folder = tmp_path_factory.mktemp("demo")
    argv = [sys.executable, "-m", "launch", "launch", DIGITS, "--gpus", "0", "--procs", "2", "--run.dir", "run"]
    return folder / "run", run_command(argv, folder)


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Lines of the journal."""
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def test_demo_reaches_97_percent_in_two_processes(demo: tuple[Path, str]) -> None:
    folder, output = demo
    start, end = events(folder, "start")[0], events(folder, "end")[0]
    assert start["plan"]["processes"] == 2
    assert end["reason"] == "complete"
    assert end["eval/accuracy_pct"] >= 97
    assert "accelerate.commands.launch --config_file" in output
    assert "batch.per_gpu 32 x 2 ranks" in output
    assert "accuracy_pct 9" in output


def test_demo_journal_has_a_line_for_every_step(demo: tuple[Path, str]) -> None:
    folder, _ = demo
    steps, plan = events(folder, "step"), events(folder, "start")[0]["plan"]
    assert [s["step"] for s in steps] == list(range(1, plan["total_steps"] + 1))
    assert steps[-1]["samples"] == plan["total_samples"] == 30 * 1437
    assert sum(s["batch/samples"] for s in steps) == 30 * 1437
    assert steps[0]["train/lr"] == plan["reference_lr"]
    assert max(s["train/lr"] for s in steps) == pytest.approx(plan["lr"], rel=1e-3)


def test_demo_run_folder_is_enough_to_repeat_it(demo: tuple[Path, str]) -> None:
    folder, _ = demo
    names = {p.name for p in folder.iterdir()}
    assert {"run.yaml", "plan.json", "accelerate.yaml", "events.jsonl", "checkpoints", "wandb"} <= names
    output = run_command([sys.executable, "-m", "launch", "train", str(folder / "run.yaml")], folder)
    assert "complete after 674 steps" in output, "a finished run says so and does nothing again"


def test_demo_fills_wandb_over_samples_with_config_and_plan(demo: tuple[Path, str]) -> None:
    folder, _ = demo
    log = min(folder.glob("wandb/offline-run-*/*.wandb"))
    wandb = str(Path(sys.executable).parent / "wandb")
    lines = run_command([wandb, "leet", "inspect", "--json", str(log)], folder).splitlines()
    records = [json.loads(line) for line in lines if line.startswith("{")]
    run = next(r["run"] for r in records if r["type"] == "run")
    assert run["config"]["update"]["plan"]["lr"] == pytest.approx(0.04)
    assert run["config"]["update"]["run"]["batch"]["per_gpu"] == 32
    metrics = {r["metric"].get("glob_name"): r["metric"].get("step_metric") for r in records if r["type"] == "metric"}
    assert metrics["train/*"] == metrics["eval/*"] == metrics["throughput/*"] == "progress/samples"
    history = [r["history"] for r in records if r["type"] == "history"]
    told = json.dumps(history)
    for name in ("train/loss", "train/lr", "train/grad_norm", "eval/accuracy_pct", "throughput/samples_per_s", "batch/ratio"):
        assert name in told, name
    assert len(history) > 60


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_bare_accelerate_cli_runs_the_worker(tmp_path: Path, ranks: int) -> None:
    path = run_file(tmp_path, "total: 8")
    argv = [str(Path(sys.executable).parent / "accelerate"), "launch", "--num_processes", str(ranks), "--num_machines", "1"]
    argv += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    argv += ["--multi_gpu"] if ranks > 1 else ["--cpu"]
    argv = ["env", "ACCELERATE_USE_CPU=true", *argv, "-m", "harness", str(path)]
    output = run_command(argv, tmp_path)
    assert f"{ranks} process" in output
    assert set(trained_ids(tmp_path).values()) == {4}


def test_simulate_world_runs_the_plan_of_many_ranks_on_one_device(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "launch", "train", DIGITS, "--simulate-world", "16", "--run.dir", "run", "--watch.wandb", "off"]
    output = run_command([*argv, "--run.stop_after_steps", "3"], tmp_path)
    plan = events(tmp_path / "run", "start")[0]["plan"]
    assert (plan["world_size"], plan["processes"], plan["global_batch"]) == (16, 1, 512)
    assert [s["batch/samples"] for s in events(tmp_path / "run", "step")] == [512] * 3
    assert "1 process on cpu simulating 16 ranks" in output


@pytest.mark.parametrize("ranks", [1, 2])
def test_sigterm_to_the_launcher_saves_and_leaves_no_process(tmp_path: Path, ranks: int) -> None:
    path = run_file(tmp_path, "total: 8")
    argv = [
        sys.executable,
        "-m",
        "launch",
        "launch",
        str(path),
        "--gpus",
        "0",
        "--procs",
        str(ranks),
        "--schedule.epochs",
        "100000",
    ]
    launcher = subprocess.Popen(argv, cwd=tmp_path, env=environ(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert launcher.stdout is not None
    with launcher.stdout:
        next(line for line in launcher.stdout if line.startswith("train "))
        workers = [int(p.stem) for p in tmp_path.glob("*.ids")]
        launcher.send_signal(signal.SIGTERM)
        output = launcher.stdout.read()
    launcher.wait(timeout=LIMIT_S)
    assert "stop_requested" in output
    assert events(tmp_path / "run", "checkpoint")
    assert len(workers) == ranks
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_launch_knows_which_warnings_the_one_before_has_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load(ROOT / "configs" / "digits.yaml")
    planned = plan(config, World(8))
    assert warned(tmp_path) == frozenset()
    write(tmp_path, run_files(config, planned), dry=False)
    assert warned(tmp_path) == {w.code for w in planned.warnings[:2]}
    print_plan(planned, warned(tmp_path))
    assert "warning" not in capsys.readouterr().out
    for broken in ("", "[]", '{"warnings": [1]}', '{"warnings": null}'):
        (tmp_path / "plan.json").write_text(broken)
        assert warned(tmp_path) == frozenset()
