"""Run in a script's own loop: the examples beside their plain versions, scaled, on two ranks, resumed on another world."""

import difflib
import json
import math
import shutil
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
    return numbers(journal, "step", "train/loss")


def numbers(journal: list[dict[str, Any]], event: str, key: str) -> list[float]:
    """A number of each event of a kind; one that is not finite is in the journal as text."""
    return [float(line[key]) for line in journal if line["event"] == event]


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


def sharded(folder: Path, kind: str, ranks: int, *options: str, **run: Any) -> list[dict[str, Any]]:
    """Run the small net's own loop as `kind` says, at four times its batch; all lines of its journal."""
    folder.mkdir(parents=True, exist_ok=True)
    tree = {
        "batch": {"reference": 8, "total": 32, "micro": 8},
        "optim": {"clip": 1.0},
        "schedule": {"epochs": 2},
        "watch": {"wandb": "off", "every_steps": 4},
        "run": {"dir": str(folder / "run")} | run,
    }
    (folder / "run.yaml").write_text(to_yaml(tree))
    run_ranks(ranks, ["tests.dist.workers.sharded_script", kind, str(folder / "run.yaml"), *options], ROOT)
    return [json.loads(line) for line in (folder / "run" / "events.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """(the folder of a run of one process that was stopped after three steps, the journal of one that was not)."""
    folder = tmp_path_factory.mktemp("whole")
    sharded(folder / "stopped", "ddp", 1, POISONED, stop_after_steps=3)
    return folder / "stopped", sharded(folder / "alone", "ddp", 1, POISONED)


POISONED = "--poisoned=0"
"""Sample 0 has a loss that is not finite: in a step of each of the two epochs."""


@pytest.mark.parametrize("kind", ["fsdp", "zero1", "zero2", "zero3"])
def test_shards_take_over_a_run_leave_out_what_is_not_finite_and_hand_it_back(
    kind: str, whole: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    stopped, alone = whole
    shutil.copytree(stopped, tmp_path / kind)
    sharded(tmp_path / kind, kind, 2, POISONED, stop_after_steps=13)
    moved = sharded(tmp_path / kind, "ddp", 1, POISONED)
    assert [line["plan"]["backend"] for line in moved if line["event"] == "start"] == ["ddp", kind, "ddp"]
    assert losses(moved) == pytest.approx(losses(alone), rel=1e-5, nan_ok=True)
    bad = [[line["step"] for line in lines if line.get("code") == "nonfinite"] for lines in (moved, alone)]
    assert bad[0] == bad[1]
    assert len(bad[0]) == 2
    assert any(3 < step <= 13 for step in bad[0]), "one of them on the shards"
    norms = [[norm for norm in numbers(lines, "step", "train/grad_norm") if math.isfinite(norm)] for lines in (moved, alone)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    evaluated = [{line["step"]: line["eval/loss"] for line in lines if line["event"] == "eval"} for lines in (moved, alone)]
    assert list(evaluated[1]) == [8, 16], "at the end of each epoch"
    assert {step: evaluated[0][step] for step in evaluated[1]} == pytest.approx(evaluated[1], rel=1e-5)


def test_fsdp2_in_bf16_trains_as_one_process_does(tmp_path: Path) -> None:
    alone, shards = (sharded(tmp_path / kind, kind, ranks, "--bf16") for kind, ranks in (("ddp", 1), ("fsdp", 2)))
    assert {line["plan"]["precision"] for line in (*alone, *shards) if line["event"] == "start"} == {"bf16"}
    assert losses(shards) == pytest.approx(losses(alone), rel=2e-2)
    assert losses(shards)[-1] < 0.7 * losses(shards)[0]
