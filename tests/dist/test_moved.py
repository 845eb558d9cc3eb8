"""A run whose folder is renamed or removed while it trains: said once, stopped on request, and nothing appears at the old path."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness.checkpoint.reader import newest
from harness.plan.plan import plan
from harness.plan.world import World
from harness.telemetry.events import Ended, Event, Noticed, Saved
from harness.training.loop import train
from launch.cli import main
from tests.dist.test_saving import codes, config
from tests.support.faults.launching import Launch, run_file, wait_for
from tests.support.processes import ROOT


def disturbed(folder: Path, befalls: Callable[[], Any], **checkpoint: Any) -> list[Event]:
    """A run in `folder` to its end; `befalls` is called after its first checkpoint."""
    c = config({"checkpoint": {"every_samples": 80, "keep": 9} | checkpoint, "watch": {"every_steps": 1}})
    events = list[Event]()
    for event in train(c, plan(c, World(1, 1, "cpu"), 40), cpu=True, folder=folder):
        if isinstance(event, Saved) and not any(isinstance(e, Saved) for e in events):
            befalls()
        events.append(event)
    return events


def end(events: list[Event]) -> Ended:
    last = events[-1]
    assert isinstance(last, Ended)
    return last


def moved(events: list[Event]) -> list[str]:
    return [e.message for e in events if isinstance(e, Noticed) and e.code == "moved"]


def test_a_run_whose_folder_is_renamed_goes_on_there(tmp_path: Path) -> None:
    run, new = tmp_path / "run", tmp_path / "new"
    events = disturbed(run, lambda: run.rename(new))
    assert moved(events) == [f"{run} was renamed to {new}: the run continues"]
    assert end(events).reason == "complete"
    assert "checkpoint_failed" not in codes(events)
    assert not run.exists()
    assert len(list(new.glob("checkpoints/samples-*"))) == 6
    found, complaints = newest(str(new / "checkpoints"))
    assert found is not None
    assert (found.state.samples, complaints) == (480, [])


@pytest.mark.parametrize("what", ["run", "run/checkpoints"])
def test_a_run_whose_place_of_checkpoints_is_removed_stops_and_makes_none_anew(tmp_path: Path, what: str) -> None:
    run = tmp_path / "run"
    events = disturbed(run, lambda: shutil.rmtree(tmp_path / what))
    assert end(events).reason == "unsaved"
    assert end(events).step < 60
    assert f"its last checkpoint could not be written: rank 0: [Errno 2] No such file or directory: '{run}" in end(events).message
    assert moved(events) == [
        f"{tmp_path / what} was removed, or moved to another disk: no further checkpoint can be written, so the run stops"
    ]
    assert not (tmp_path / what).exists()


@pytest.mark.parametrize("gone", ["run", "kept"])
def test_checkpoints_that_lie_elsewhere_are_written_as_long_as_their_place_is_there(tmp_path: Path, gone: str) -> None:
    run, kept = tmp_path / "run", tmp_path / "kept"
    run.mkdir()
    events = disturbed(run, lambda: shutil.rmtree(tmp_path / gone), dir=str(kept))
    assert len(moved(events)) == 1
    assert end(events).reason == ("complete" if gone == "run" else "unsaved")
    assert not (tmp_path / gone).exists()


@contextmanager
def renamed(tmp_path: Path) -> Iterator[tuple[Launch, Path]]:
    """A launch of two ranks whose run folder has been renamed, and the new path. Nothing of it is left."""
    launch, new = Launch(run_file(tmp_path, epochs=10_000, restart={"budget": 3})), tmp_path / "new"
    try:
        launch.at_step(4)
        (tmp_path / "run").rename(new)
        wait_for(lambda: f"was renamed to {new}: the run continues" in launch.text(), "word of it")
        yield launch, new
        assert launch.left() == []
    finally:
        launch.end()
    assert launch.text().count(" was renamed to ") <= 2
    assert "Traceback" not in launch.text()
    assert not (tmp_path / "run").exists()


def test_a_launch_whose_folder_is_renamed_is_stopped_by_sigterm_with_a_checkpoint(tmp_path: Path) -> None:
    with renamed(tmp_path) as (launch, new):
        launch.process.terminate()
        assert launch.wait() == 75, launch.text()
        assert f"to resume: widebatch launch {new}/run.yaml --gpus 0 --procs 2 --run.dir {new}\n" in launch.text()
        journal = (new / "events.jsonl").read_text()
    assert '"reason": "stop_requested"' in journal
    found, complaints = newest(str(new / "checkpoints"))
    assert found is not None
    assert complaints == []
    assert f'"event": "end", "step": {found.state.step},' in journal, "the last step is saved"


def test_a_launch_whose_folder_is_renamed_is_not_started_again_at_the_old_path(tmp_path: Path) -> None:
    with renamed(tmp_path) as (launch, new):
        wait_for(lambda: list((new / "checkpoints").glob("samples-*")), "a checkpoint")
        os.kill(launch.at_step(5)[1], signal.SIGKILL)
        assert launch.wait() == 1, launch.text()
        assert f"giving up: {tmp_path}/run was renamed to {new}" in launch.text()
        assert "kept: the checkpoint samples-" in launch.text()
        assert f"logs of all ranks: {new}/logs\n" in launch.text()
        assert f"to resume: widebatch launch {new}/run.yaml --gpus 0 --procs 2 --run.dir {new}\n" in launch.text()


def test_a_run_file_in_a_renamed_run_folder_does_not_begin_the_run_again_at_the_old_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, new = tmp_path / "run", tmp_path / "new"
    short = ["--recipe.width", "4", "--schedule.epochs", "6", "--run.stop_after_steps", "3"]
    assert main(["train", str(ROOT / "configs" / "digits.yaml"), "--run.dir", str(run), *short]) == 0
    run.rename(new)
    assert main(["train", str(new / "run.yaml")]) == 2
    told = capsys.readouterr().err
    assert f"run.dir: is {run} in {new}/run.yaml, which lies in another run folder; add --run.dir {new} to" in told
    assert not run.exists()
    assert main(["train", str(new / "run.yaml"), "--run.dir", str(new), "--run.stop_after_steps", "1"]) == 0
    assert "resumed" in capsys.readouterr().out
    assert not run.exists()
