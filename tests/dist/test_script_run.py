"""Run in a script's own loop: the examples beside their plain versions, scaled, on two ranks, resumed on another world."""

import difflib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.config.yaml_text import to_yaml
from tests.support.processes import ROOT, run_command, run_ranks

EXAMPLES = ROOT / "configs" / "examples"
REFERENCE = {"images": 32, "text": 16}
SHAPE = {"images": "cosine", "text": "linear"}


def write_settings(folder: Path, name: str, total: int, **run: Any) -> Path:
    """Settings of two epochs at a batch of `total`."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "run.yaml"
    tree = {
        "batch": {"reference": REFERENCE[name], "total": total},
        "schedule": {"epochs": 2, "shape": SHAPE[name]},
        "watch": {"wandb": "off"},
        "run": {"dir": str(folder / "run")} | run,
    }
    file.write_text(to_yaml(tree))
    return file


def train(folder: Path, name: str, total: int, ranks: int = 1, *, accelerate: bool = False, **run: Any) -> list[dict[str, Any]]:
    """Run the adopted example, on request by accelerate launch; all lines of its journal."""
    files = [str(EXAMPLES / f"{name}_run.py"), "--run", str(write_settings(folder, name, total, **run))]
    script = ["tests.dist.workers.script", *files]
    if accelerate:
        options = ["--multi_gpu", f"--num_processes={ranks}", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
        launch = ["-m", "accelerate.commands.launch", *options, "--main_process_port=0", "-m"]
        run_command(["env", "ACCELERATE_USE_CPU=true", sys.executable, *launch, *script], ROOT)
    else:
        run_ranks(ranks, script, ROOT)
    return [json.loads(line) for line in (folder / "run" / "events.jsonl").read_text().splitlines()]


def losses(journal: list[dict[str, Any]]) -> list[float]:
    """The loss of each step."""
    return [line["train/loss"] for line in journal if line["event"] == "step"]


@pytest.mark.parametrize("name", REFERENCE)
def test_an_example_adopts_run_by_eight_lines(name: str) -> None:
    before, after = ((EXAMPLES / f"{name}_{kind}.py").read_text().splitlines() for kind in ("plain", "run"))
    lines = [line[2:] for line in difflib.ndiff(before, after) if line.startswith("+ ") and line[2:].strip()]
    code = [line for line in lines if not line.startswith(('"""', "parser."))]
    assert len(code) == 8, code


@pytest.mark.parametrize("name", REFERENCE)
def test_at_the_reference_batch_the_losses_are_those_of_the_script_before(name: str, tmp_path: Path) -> None:
    plain = ["tests.dist.workers.recorded_script", str(tmp_path / "plain.json"), str(EXAMPLES / f"{name}_plain.py"), "--epochs=2"]
    printed = run_ranks(1, plain, ROOT)
    expected = json.loads((tmp_path / "plain.json").read_text())
    journal = train(tmp_path / "adopted", name, REFERENCE[name])
    assert len(expected) > 80
    assert losses(journal) == pytest.approx(expected, rel=1e-6)
    evaluated = [line["eval/loss"] for line in journal if line["event"] == "eval"]
    assert [f"loss {value:.6f}" in printed for value in evaluated] == [True, True]
    assert [line["reason"] for line in journal if line["event"] == "end"] == ["complete"]


def test_four_times_the_batch_on_two_ranks_is_what_one_process_computes_and_resumes_on_another_world(tmp_path: Path) -> None:
    alone = train(tmp_path / "alone", "images", 128)
    (started,) = [line for line in alone if line["event"] == "start"]
    assert (started["plan"]["ratio"], started["plan"]["accumulate"], started["plan"]["lr"]) == (4, 4, pytest.approx(0.08))
    two = train(tmp_path / "two", "images", 128, ranks=2, accelerate=True, stop_after_steps=9)
    assert two[-1]["reason"] == "stop_after_steps"
    assert losses(two) == pytest.approx(losses(alone)[:9], rel=1e-5)
    whole = train(tmp_path / "two", "images", 128)
    assert losses(whole) == pytest.approx(losses(alone), rel=1e-5)
    assert [line["samples"] for line in whole if line["event"] == "step"] == [
        line["samples"] for line in alone if line["event"] == "step"
    ]
    resumed = [line["message"] for line in whole if line.get("code") == "resumed"]
    assert ["2 -> 1 ranks" in message for message in resumed] == [True], resumed
    assert [line["train/lr"] for line in whole if line["event"] == "step"] == [
        line["train/lr"] for line in alone if line["event"] == "step"
    ]


def test_tokens_are_counted_and_a_resumed_run_of_two_ranks_goes_on_where_one_stopped(tmp_path: Path) -> None:
    alone = train(tmp_path / "alone", "text", 64)
    first = train(tmp_path / "moved", "text", 64, stop_after_steps=10)
    moved = train(tmp_path / "moved", "text", 64, ranks=2)
    assert losses(first) == losses(alone)[:10]
    assert [line["plan"]["processes"] for line in moved if line["event"] == "start"] == [1, 2]
    assert losses(moved) == pytest.approx(losses(alone), rel=1e-5)
    windows = [line for line in moved if line["event"] == "window"]
    assert windows[-1]["progress/tokens"] == 2 * 1024 * 64
    assert windows[-1]["batch/noise_scale_samples"]
