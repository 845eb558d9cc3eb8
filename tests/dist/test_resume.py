"""A run continues with another number of ranks: no sample lost or repeated, the learning rate of the same sample the same."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import ROOT, run_ranks

SIZE, EPOCHS = 101, 4


def run_file(folder: Path, batch: str) -> Path:
    """A run of 4 epochs over 101 samples, batches crossing the epochs, its last batch short."""
    path = folder / "run.yaml"
    recipe = f"{{use: '{ROOT}/tests/dist/workers/counting.py:Counting', log: '{folder}', size: {SIZE}}}"
    path.write_text(
        f"recipe: {recipe}\nbatch: {{reference: 8, {batch}, micro: 2}}\noptim: {{lr: 0.01, momentum: 0.9}}\n"
        f"scaling: {{warmup_epochs: 1}}\nschedule: {{epochs: {EPOCHS}, shape: cosine}}\n"
        f"watch: {{wandb: 'off', every_steps: 3}}\nrun: {{dir: {folder}/run}}\n"
    )
    return path


def journal(folder: Path, event: str) -> list[dict[str, Any]]:
    """The journal's lines of one kind; of a run that is still going, those that are whole."""
    whole, _, _ = (folder / "run" / "events.jsonl").read_text().rpartition("\n")
    lines = [json.loads(line) for line in whole.splitlines()]
    return [line for line in lines if line["event"] == event]


def trained_ids(folder: Path) -> Counter[int]:
    """How often each sample was trained on, by all processes of all launches."""
    return Counter(int(i) for f in folder.glob("*.ids") for i in f.read_text().split())


@pytest.mark.parametrize(("batch", "worlds"), [("total: 8", (2, 4, 1)), ("per_gpu: 4", (2, 4, 1))])
def test_two_then_four_then_one_rank_lose_and_repeat_nothing(tmp_path: Path, batch: str, worlds: tuple[int, ...]) -> None:
    path = run_file(tmp_path, batch)
    for ranks, limit in zip(worlds, (14, 9, 1000), strict=True):
        argv = ["harness", str(path), "--run.stop_after_steps", str(limit)]
        run_ranks(ranks, argv, tmp_path, torchrun=ranks > 1 and batch == "total: 8")
    assert trained_ids(tmp_path) == Counter(dict.fromkeys(range(SIZE), EPOCHS))
    steps = journal(tmp_path, "step")
    assert [s["step"] for s in steps] == list(range(1, len(steps) + 1))
    assert [s["samples"] for s in steps][-1] == SIZE * EPOCHS
    assert journal(tmp_path, "end")[-1]["reason"] == "complete"
    starts = journal(tmp_path, "start")
    assert [start["plan"]["world_size"] for start in starts] == list(worlds)
    begin = 0
    for step in steps:
        plan = [start["plan"] for start in starts if start["step"] < step["step"]][-1]
        assert step["train/lr"] == pytest.approx(expected_lr(plan, begin), rel=1e-12)
        begin += step["batch/samples"]


def expected_lr(plan: dict[str, Any], samples: int) -> float:
    """The rate at a sample, written out by hand: Goyal's warm-up from the reference rate, then a cosine to zero."""
    peak = 0.01 * plan["global_batch"] / 8
    start = min(0.01, peak)
    if samples < SIZE:
        return float(start + (peak - start) * samples / SIZE)
    return float(peak * (1 + math.cos(math.pi * (samples - SIZE) / (SIZE * (EPOCHS - 1)))) / 2)


def test_a_run_that_stops_and_goes_on_in_one_process_repeats_every_bit(tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    for folder in (whole, halves):
        folder.mkdir()
    run_ranks(1, ["harness", str(run_file(whole, "total: 8"))], whole)
    path = run_file(halves, "total: 8")
    run_ranks(1, ["harness", str(path), "--run.stop_after_steps", "20"], halves)
    run_ranks(1, ["harness", str(path)], halves)
    told = [[(s["step"], s["train/loss"], s["train/grad_norm"]) for s in journal(f, "step")] for f in (whole, halves)]
    assert told[0] == told[1]


def test_sigterm_saves_and_the_run_goes_on(tmp_path: Path) -> None:
    path = run_file(tmp_path, "total: 8")
    watcher = f"['{ROOT}/tests/dist/workers/counting.py:Impatient']"
    argv = ["harness", str(path), "--watch.use", watcher]
    output = run_ranks(2, argv, tmp_path, status=1, torchrun=True)  # its own, of the 75
    assert "stop_requested" in output
    assert "to resume: widebatch" in output
    run_ranks(2, ["harness", str(path)], tmp_path)
    assert trained_ids(tmp_path) == Counter(dict.fromkeys(range(SIZE), EPOCHS))


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path: Path) -> None:
    path = run_file(tmp_path, "total: 8")
    for steps in (10, 10):
        run_ranks(1, ["harness", str(path), "--run.stop_after_steps", str(steps)], tmp_path)
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    tensors = newest / "tensors-0000-of-0001.safetensors"
    data = bytearray(tensors.read_bytes())
    data[-1] ^= 1
    tensors.write_bytes(data)
    output = run_ranks(1, ["harness", str(path)], tmp_path)
    assert f"{newest.name}: {tensors.name} is not what was written" in output
    notices = [n["code"] for n in journal(tmp_path, "notice")]
    assert "damaged_checkpoint" in notices
    assert journal(tmp_path, "end")[-1]["reason"] == "complete"


def test_a_sample_that_is_not_a_number_is_named_and_left_out_of_the_means_on_two_ranks(tmp_path: Path) -> None:
    path, poison = run_file(tmp_path, "total: 8"), 7
    run_ranks(2, ["harness", str(path), "--recipe.poison", str(poison), "--guard.budget", "50"], tmp_path)
    windows, notices = journal(tmp_path, "window"), journal(tmp_path, "notice")
    bad = [n["step"] for n in notices if n["code"] == "nonfinite"]
    assert len(bad) == windows[-1]["stability/nonfinite_steps"] == EPOCHS, "one in each epoch"
    named = [n for n in notices if n["code"] == "nonfinite_samples"]
    assert [n["step"] for n in named] == bad
    assert {n["message"] for n in named} == {f"the loss of sample {poison} is not finite: look at the data"}
    for window in windows:
        assert 0 < window["train/loss"] <= window["train/loss_max_rank"], "both over the steps of finite loss"
