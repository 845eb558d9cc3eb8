"""What a run tells of itself: every metric of the table, true sums over ranks, nothing hidden by a NaN, a pause or a restart."""

import json
import math
import re
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from harness.analysis.run_record import PARTS
from harness.telemetry.metric_catalog import METRICS, markdown
from harness.telemetry.spikes import FLAGGED, LEAST, Spikes
from harness.training.evaluate import evaluate
from tests.support.journals import digits
from tests.support.processes import run_command, run_ranks
from tests.support.readmes import TEXT

TOLD = {m.name for m in METRICS if not m.name.startswith(("eval/", "data/"))}
NOT_HERE = {
    "progress/tokens",
    "throughput/tokens_per_s",
    "throughput/tokens_per_s_per_device",
    "pause/checkpoint_s",
    "reliability/log_points_dropped",
    "batch/noise_scale_estimator",
}
"""Only with tokens, only once a checkpoint was written, only at W&B, and in the line of the start."""
GPU = {n for n in TOLD if n.startswith(("system/gpu_", "system/energy_"))}
NODE = {n for n in TOLD if n.startswith("system/")} - GPU
"""Null in a run that ends before a node's first sample."""
UNKNOWN = {"throughput/mfu_pct", "throughput/scaling_efficiency_pct", "batch/noise_scale_moments_samples"} | GPU
"""Null on a CPU without a baseline, and where passes or ranks measure the noise scale."""
RECIPES: dict[str, dict[str, Any]] = {
    "digits": {"use": "digits", "width": 4},
    "bytes_lm": {"use": "bytes_lm", "width": 16, "depth": 1, "heads": 2, "context": 32, "max_bytes": 12_000},
}


def told(folder: Path, which: str, ranks: int, **sections: Any) -> list[dict[str, Any]]:
    """The journal of a run of 32 steps of 32 samples."""
    folder.mkdir(exist_ok=True)
    tree = {
        "recipe": RECIPES[which],
        "batch": {"reference": 32, "total": 32, "micro": 8},
        "optim": {"lr": 0.05, "momentum": 0.9},
        "schedule": {"samples": 1024},
        "eval": {"every_samples": 512},
        "checkpoint": {"every_samples": 256},
        "precision": "fp64",
        "run": {"dir": str(folder / "run")},
    } | sections
    (folder / "run.yaml").write_text(json.dumps({"watch": {"wandb": "off"}} | tree))
    run_ranks(ranks, ["harness", str(folder / "run.yaml")], folder)
    return [json.loads(line) for line in (folder / "run" / "events.jsonl").read_text().splitlines()]


def windows(journal: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The windows' lines."""
    return [line for line in journal if line["event"] == "window"]


@pytest.fixture(scope="module")
def journals(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """By recipe and number of ranks."""
    folder = tmp_path_factory.mktemp("telemetry")
    runs = [("digits", 2), ("bytes_lm", 1), ("bytes_lm", 2), ("bytes_lm", 4)]
    return {(recipe, ranks): told(folder / f"{recipe}{ranks}", recipe, ranks) for recipe, ranks in runs}


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_every_metric_of_the_table_is_told_with_a_sane_value(journals: dict[Any, Any], recipe: str) -> None:
    journal = journals[recipe, 2]
    last = windows(journal)[-1]
    evaluated = [line for line in journal if line["event"] == "eval"][-1]
    missing = {name for name in TOLD if name not in last and not name.startswith("pause/")}
    assert missing <= NOT_HERE
    assert {name for name in last if "/" in name} <= TOLD | {n.replace("group0", "group1") for n in TOLD}
    assert {n for n in TOLD & set(last) - NODE if last[n] is None} == UNKNOWN
    for name in TOLD & set(last) - UNKNOWN - NODE - {"stability/loss_z", "stability/grad_norm_z", "throughput/padding_pct"}:
        assert math.isfinite(last[name]), name
        assert last[name] >= 0, name
    for name in ("data_wait_pct", "comm_wait_pct"):
        assert 0 <= last[f"throughput/{name}"] <= 100
    assert 0 < last["reliability/goodput_pct"] <= 100
    assert 0 < last["train/update_to_param_ratio"] < 1
    assert last["train/param_norm"] ** 2 == pytest.approx(sum(last[f"train/group{n}_param_norm"] ** 2 for n in (0, 1)))
    assert last["train/loss"] <= last["train/loss_max_rank"]
    assert last["reliability/checkpoint_bytes"] > 1000
    assert evaluated["eval/generalization_gap"] == pytest.approx(evaluated["eval/loss"] - _train_loss(journal, recipe), rel=1e-9)


def _train_loss(journal: list[dict[str, Any]], recipe: str) -> float:
    """Mean loss over the last steps that hold as many samples as the validation split."""
    from harness.config.schema import RecipeConfig
    from harness.recipes.base import load_recipe

    knobs = {k: v for k, v in RECIPES[recipe].items() if k != "use"}
    size = len(load_recipe(RecipeConfig(use=recipe, knobs=knobs)).data("valid") or ())
    needed = math.ceil(size / 32)
    steps = [line for line in journal if line["event"] == "step"][-needed:]
    return float(sum(s["train/loss"] * s["batch/items"] for s in steps) / sum(s["batch/items"] for s in steps))


@pytest.mark.parametrize(("which", "ranks", "estimator"), [("digits", 2, "passes"), ("bytes_lm", 4, "ranks")])
def test_the_start_says_how_the_noise_scale_is_measured(journals: dict[Any, Any], which: str, ranks: int, estimator: str) -> None:
    assert journals[which, ranks][0]["estimator"] == estimator


def test_norms_of_each_layer_on_request(tmp_path: Path) -> None:
    last = windows(told(tmp_path, "digits", 1, watch={"wandb": "off", "layers": True}))[-1]
    layers = [name for name in last if name.startswith("train/layer_") and name.endswith("_param_norm")]
    assert sorted(layers) == [f"train/layer_{n}_{kind}_param_norm" for n in (0, 2, 6) for kind in ("bias", "weight")]
    assert sum(last[name] ** 2 for name in layers) == pytest.approx(last["train/param_norm"] ** 2)
    assert all(re.fullmatch(r"[a-z]+/[_a-zA-Z][_a-zA-Z0-9]*", name) for name in last if "/" in name)


def test_rates_times_training_time_are_the_tokens(journals: dict[Any, Any]) -> None:
    """The first step, which warms up, is a window of its own and in neither."""
    found = windows(journals["bytes_lm", 2])
    assert found[0]["throughput/tokens_per_s"] is None
    tokens = time = 0.0
    for before, now in pairwise(found):
        spent = now["progress/trained_s"] - before["progress/trained_s"]
        tokens, time = tokens + now["throughput/tokens_per_s"] * spent, time + spent
    assert tokens == pytest.approx(found[-1]["progress/tokens"] - found[0]["progress/tokens"], rel=0.005)
    assert time == pytest.approx(found[-1]["progress/train_s"], rel=0.3, abs=0.5)
    assert found[-1]["progress/samples"] == 1024


def test_sums_are_the_same_on_1_2_and_4_ranks(journals: dict[Any, Any]) -> None:
    names = ("train/loss", "train/grad_norm", "train/param_norm", "train/group0_grad_norm", "progress/tokens", "progress/samples")
    alone = windows(journals["bytes_lm", 1])
    for ranks in (2, 4):
        for name in names:
            here = [w[name] for w in windows(journals["bytes_lm", ranks])]
            assert here == pytest.approx([w[name] for w in alone], rel=1e-9), (ranks, name)
        padding = [w["throughput/padding_pct"] for w in windows(journals["bytes_lm", ranks])]
        assert padding == pytest.approx([w["throughput/padding_pct"] for w in alone])
    assert 0 < alone[-1]["throughput/padding_pct"] < 50


def test_time_that_is_no_training_is_named(journals: dict[Any, Any]) -> None:
    last = windows(journals["digits", 2])[-1]
    pauses = {name: value for name, value in last.items() if name.startswith("pause/")}
    assert set(pauses) >= {"pause/start_s", "pause/first_step_s", "pause/eval_s", "pause/checkpoint_s"}
    assert last["progress/wall_s"] == pytest.approx(last["progress/train_s"] + sum(pauses.values()), rel=0.05, abs=0.05)


def test_nan_on_rank_1_is_one_nonfinite_step_and_no_finite_loss(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        "import os\nfrom dataclasses import dataclass\nfrom harness.recipes.digits import Digits\n\n"
        "@dataclass(frozen=True)\nclass Bad(Digits):\n"
        "    def loss(self, model, batch):\n        total, count = super().loss(model, batch)\n"
        "        Bad.calls = getattr(Bad, 'calls', 0) + model.training\n"
        "        return (total * float('nan') if os.environ.get('RANK') == '1' and Bad.calls == 9 else total), count\n"
    )
    journal = told(tmp_path, "digits", 2, recipe={"use": f"{tmp_path}/bad.py:Bad", "width": 4}, watch={"wandb": "offline"})
    assert all(isinstance(w["train/loss"], float) for w in windows(journal)), "a window's mean is that of its finite steps"
    assert [line["train/loss"] for line in journal if line["event"] == "step"].count("nan") == 1
    assert windows(journal)[-1]["stability/nonfinite_steps"] == windows(journal)[-1]["stability/skipped_steps"] == 1
    assert math.isfinite(windows(journal)[-1]["batch/noise_scale_samples"])
    assert math.isfinite(windows(journal)[-1]["train/loss"])
    log = min((tmp_path / "run").glob("wandb/offline-run-*/*.wandb"))
    said = run_command([str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json", str(log)], tmp_path)
    records = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    points = [r["history"]["item"] for r in records if r["type"] == "history" and "train/loss" in r["history"]["item"]]
    assert all(isinstance(p["train/loss"], float) for p in points)
    assert points[-1]["stability/nonfinite_steps"] == 1


def test_a_restart_tells_what_it_lost_and_drops_nothing(tmp_path: Path) -> None:
    told(tmp_path, "digits", 1)
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    for file in newest.iterdir():
        file.write_bytes(b"gone")
    run_ranks(1, ["harness", str(tmp_path / "run.yaml")], tmp_path)
    journal = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    steps = [line["samples"] for line in journal if line["event"] == "step"]
    assert steps == [*range(32, 1025, 32), *range(800, 1025, 32)], "the rewound samples are told again, after the first time"
    last = windows(journal)[-1]
    assert last["reliability/restarts"] == 1
    assert last["reliability/lost_s"] > 0


@pytest.mark.parametrize("after_nan", [False, True])
def test_a_spike_is_found_though_one_came_just_before(after_nan: bool) -> None:
    spikes = Spikes()
    for number in range(400):
        value = 2.0 + 0.05 * math.sin(number * 1.7)
        if number in (150, 250, 300):
            value += 3.0
            (z,) = spikes.scores([value])
            assert z is not None
            assert z > FLAGGED
        spikes = spikes.after([math.nan if after_nan and number in (149, 249) else value])
    assert spikes.count == 3
    assert max(spikes.memory) < 2.1


def test_a_new_level_is_no_spike_for_ever() -> None:
    spikes = Spikes(tuple(1.0 + 0.01 * (n % 7) for n in range(100)))
    for number in range(LEAST + 50):
        spikes = spikes.after([5.0 + 0.01 * (number % 7)])
    assert spikes.count == LEAST
    assert min(spikes.memory) > 4.9


def test_the_readme_has_the_table_of_metrics_and_the_report_a_name_for_each_pause() -> None:
    assert markdown() in TEXT
    assert {m.name for m in METRICS if m.name.startswith("pause/")} <= {f"pause/{part}_s" for part in PARTS}


def test_a_slow_evaluation_is_in_no_step_s_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each evaluation takes an hour by every clock."""
    hours = [0]

    def slow(*args: Any) -> Any:
        hours[0] += 1
        return evaluate(*args)

    monotonic, perf_counter = time.monotonic, time.perf_counter
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + 3600 * hours[0])
    monkeypatch.setattr(time, "perf_counter", lambda: perf_counter() + 3600 * hours[0])
    monkeypatch.setattr("harness.training.loop.evaluate", slow)
    folder = digits(tmp_path, 32, eval={"every_samples": 800}, schedule={"samples": 1600})
    told = windows([json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()])
    assert len(told) > 10
    assert told[-1]["pause/eval_s"] >= 3600
    assert max(line["throughput/step_p95_ms"] for line in told[1:]) < 3600e3
    assert told[-1]["progress/train_s"] < 3600
    assert all(0 <= line["throughput/data_wait_pct"] <= 100 for line in told)
