"""Ranks that are killed, and the others who continue in their processes: the same losses, no sample lost or repeated, no hang."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from harness.checkpoint.reader import newest
from harness.checkpoint.train_state import State
from harness.config.loader import load
from harness.config.run_folder import RunFolder
from harness.data.sample_order import Chunk, StepShards
from harness.engine.factory import open_engine
from harness.engine.training_engine import TrainingEngine
from harness.plan.plan import plan
from harness.plan.world import World
from harness.recipes.base import load_recipe
from harness.recipes.contract import train_split
from harness.telemetry.events import Noticed, Saved, Stepped, Windowed
from harness.training.checkpointing import Saver
from harness.training.feeds import open_feed
from harness.training.loop import train
from harness.training.window_report import WindowReporter
from tests.support.faults.launching import Launch, run_file
from tests.support.processes import run_ranks

RANKS, BATCH, SIZE = 4, 16, 64


def undisturbed(folder: Path, **sections: Any) -> tuple[dict[int, float], dict[int, float | None]]:
    """(losses, norms of the weights) by step of the run of four ranks that meets no fault, in this process."""
    folder.mkdir()
    config = load(run_file(folder, size=SIZE, **sections), {})
    planned = plan(config, World(RANKS, device="cpu", processes=1), SIZE)
    events = list(train(config, planned, cpu=True))
    norms = {e.step: e.metrics["train/param_norm"] for e in events if isinstance(e, Windowed)}
    return {e.step: e.metrics["train/loss"] for e in events if isinstance(e, Stepped)}, norms


def test_four_kills_cost_three_recoveries_and_a_restart_and_no_sample(tmp_path: Path) -> None:
    """In the first step, in an evaluation, within a window, and of rank 0, which holds the journal: for it all start again."""
    sections: dict[str, Any] = {"batch": {"total": BATCH}, "epochs": 10, "eval": {"every_epochs": 2}}
    expected, sizes = undisturbed(tmp_path / "whole", **sections)
    faults = "kill@1:3 kill@eval:2 kill@14:1 kill@30:0"
    launch = Launch(run_file(tmp_path, size=SIZE, faults=faults, restart={"in_place": True, "budget": 4}, **sections), RANKS)
    try:
        assert launch.wait() == 0, launch.text()
        text = launch.text()
        assert launch.left() == []
    finally:
        launch.end()
    lost = [n for n in launch.journal("notice") if n["code"] == "rank_lost"]
    assert [(n["step"], n["lost"], n["world_size"]) for n in lost] == [(0, [3], 3), (8, [2], 2), (10, [1], 1)]
    assert all(n["seconds"] > 0 for n in lost)
    assert "rank 3 was killed at step 1; 3 ranks continue without a restart, fault 1 of 4\n" in text
    assert "rank 2 was killed at step 8; 2 ranks continue without a restart, fault 2 of 4\n" in text
    assert "rank 1 was killed at step 11; 1 rank continues without a restart, fault 3 of 4\n" in text
    assert "rank 0 was killed at step 12; restart 4 of 4\n" in text, text
    starts, windows = launch.journal("start"), launch.journal("window")
    assert [s["plan"]["world_size"] for s in starts] == [4, 4]
    worlds = [w["batch/world_size"] for w in windows]
    assert [world for world, before in zip(worlds, [0, *worlds], strict=False) if world != before] == [3, 2, 1, 4]
    moves = [(w["step"], w["train/update_to_param_ratio"]) for w in windows]
    assert [step for step, moved in moves if moved is None] == [10], "a window that a loss has cut short, unmeasured"
    assert all(moved is None or moved > 0 for _, moved in moves), "the weights whose norms are measured are those that move"
    norms = {w["step"]: w["train/param_norm"] for w in windows if w["step"] in sizes}
    assert norms == pytest.approx({step: sizes[step] for step in norms}, rel=1e-6), "what several ranks hold counts once"
    assert {w["batch/world_size"] for w in windows if w["step"] in sizes} == {1, 2, 3, 4}
    last = windows[worlds.index(4) - 1]
    assert last["reliability/recoveries"] == 3
    assert last["pause/recovery_s"] == pytest.approx(sum(n["seconds"] for n in lost), abs=5)
    steps = launch.journal("step")
    again = starts[1]["step"]
    assert [s["step"] for s in steps] == [*range(1, steps.index(steps[-1]) + 1 - (40 - again) + 1), *range(again + 1, 41)]
    assert all(s["samples"] == BATCH * s["step"] for s in steps)
    assert {s["step"]: s["train/loss"] for s in steps} == pytest.approx(expected, rel=1e-6)
    evaluations = launch.journal("eval")
    assert [e["step"] for e in evaluations if e["step"] == 8] == [8], "the evaluation in which a rank was lost was made again"


def test_ranks_that_are_left_meet_or_say_why_not_and_never_wait_for_the_dead(tmp_path: Path) -> None:
    told = run_ranks(1, ["tests.dist.workers.regroup"], tmp_path)
    found = {line["case"]: line["ranks"] for line in map(json.loads, (line for line in told.splitlines() if line.startswith("{")))}
    alone = "the ranks do not stand at the same step: rank 0 7, rank 1 8, rank 3 7"
    assert found == {
        "one": {"0": [0, 1, 3], "1": [0, 1, 3], "3": [0, 1, 3]},
        "one more meanwhile": {"0": [0, 1], "1": [0, 1]},
        "apart": dict.fromkeys("013", alone),
        "failed": dict.fromkeys("013", "none is lost"),
        "rank 0": dict.fromkeys("123", "rank 0 is gone, which keeps the journal"),
        "late": {
            "0": "not all ranks that are left came together in time",
            "1": "not all ranks that are left came together in time",
        },
    }


def test_a_step_that_may_have_moved_weights_is_not_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a rank is lost as the weights move, some may have moved, on some ranks: all start again from a checkpoint."""
    config = load(run_file(tmp_path, size=SIZE), {})
    planned, recipe = plan(config, World(1, device="cpu"), SIZE), load_recipe(config.recipe)
    engine = open_engine(config, planned, recipe, cpu=True)
    assert isinstance(engine, TrainingEngine)
    feed = open_feed(engine, recipe, config, train_split(recipe, 0), order=None)
    micros = feed.few(StepShards(0, 8, (Chunk(0, 4), Chunk(4, 4))))

    def lost(*_: Any) -> None:
        raise RuntimeError("Connection closed by peer")

    owner: Any = engine.owner
    monkeypatch.setattr(owner._gradients, "moved", lost)
    with pytest.raises(RuntimeError, match="closed by peer"):
        engine.step(micros, 0.01, False)
    with pytest.raises(RuntimeError, match="weights may have moved"):
        engine.regroup(planned)


def test_a_checkpoint_that_a_lost_rank_was_writing_is_given_up_and_the_next_is_whole(tmp_path: Path) -> None:
    config = load(run_file(tmp_path, size=SIZE), {})
    planned, recipe = plan(config, World(1, device="cpu"), SIZE), load_recipe(config.recipe)
    engine = open_engine(config, planned, recipe, cpu=True)
    feed = open_feed(engine, recipe, config, train_split(recipe, 0), order=None)
    saver = Saver(engine, config, tmp_path, WindowReporter(config, planned, recipe, engine, feed, 0), {"world_size": 4}, None)
    try:
        state = State(step=1, samples=8)
        saver._staging.prepare(engine.pieces())
        writer = saver._staging._writer
        assert writer is not None
        writer.send_signal(signal.SIGSTOP)
        assert list(saver.save(state, {})) == []
        abandoned, told = saver.regroup(state)
        assert abandoned
        assert [(e.code, e.message) for e in told if isinstance(e, Noticed)] == [
            ("checkpoint_failed", "checkpoint not written: a rank was lost while it was being written")
        ]
        assert list(saver.save(state, {})) == [], "the same state is saved again"
        (saved,) = saver.settle()
        assert isinstance(saved, Saved)
        assert saver.regroup(state) == (False, []), "it is whole, and stays"
        assert list(saver.save(state, {})) == []
        found, _ = newest(RunFolder(tmp_path).checkpoints(config))
        assert found is not None
        assert found.about["world_size"] == 1
    finally:
        saver.close()
