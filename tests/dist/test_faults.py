"""Faults in real runs: ranks, launching processes and launchers are killed, stopped, starved; what is left must be right."""

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from launch.processes.supervisor import SECOND_S
from tests.support.faults.clock import set_clock
from tests.support.faults.launching import Launch, run_file, wait_for
from tests.support.faults.ledger import lost_or_repeated, trained
from tests.support.processes import ROOT

CANARY = "5ec4e7" * 6 + "abcd"
"""A key of W&B that must not be seen anywhere."""
BUSY = r"(\S+) ms a step, the others (\S+)"
SITE = ROOT / "tests" / "support" / "faults" / "site"
LONG: dict[str, Any] = {"epochs": 10_000}


@contextmanager
def launching(path: Path, *flags: str, ranks: int = 2, env: dict[str, str] | None = None) -> Iterator[Launch]:
    """A launch of which nothing is left."""
    launch = Launch(path, ranks, *flags, env=env)
    try:
        yield launch
        assert launch.left() == []
    finally:
        launch.end()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """The losses of the run that meets no fault."""
    with launching(run_file(tmp_path_factory.mktemp("whole"))) as launch:
        assert launch.wait() == 0, launch.text()
        return launch.losses()


def test_a_run_survives_a_kill_and_a_stopped_rank_and_loses_no_sample(tmp_path: Path, whole: dict[int, float]) -> None:
    path = run_file(tmp_path, faults="kill@13:1 stop@9:1", restart={"budget": 2, "hang_s": 15})
    with launching(path) as launch:
        assert launch.wait() == 0, launch.text()
        causes = [n["message"] for n in launch.journal("notice") if n["code"] == "restarted"]
        assert len(causes) == 2, "one unit of the budget for each fault"
        assert re.match(r"rank 1 hung for \d+ s, its process is stopped \(SIGSTOP\), at step 9; restart 1 of 2", causes[0]), causes
        assert causes[1].startswith("rank 1 was killed at step "), causes
        assert causes[1].endswith("; restart 2 of 2"), causes
        assert [w["reliability/restarts"] for w in launch.journal("window")][-1] == 2
        assert launch.journal("end")[-1]["reason"] == "complete"
        assert launch.losses() == whole, "bit for bit the run that met no fault"
    steps = trained(tmp_path, ranks=2, passes=1)
    assert len(steps) == len(whole) == 48
    assert lost_or_repeated(steps, 64, 8) == 0


def test_out_of_memory_on_one_rank_halves_the_micro_batch(tmp_path: Path, whole: dict[int, float]) -> None:
    path = run_file(tmp_path, faults="memory@7:1", epochs=2)
    with launching(path) as launch:
        assert launch.wait() == 0, launch.text()
        assert "rank 1 ran out of memory at micro-batch 4 at step 7; restart 1 of 3 with micro-batch 2" in launch.text()
        assert "Traceback" not in launch.text()
        assert [s["plan"]["micro_batch"] for s in launch.journal("start")] == [4, 2]
        for step, loss in launch.losses().items():
            assert loss == pytest.approx(whole[step], rel=1e-5)


def test_an_error_that_comes_back_is_told_once_and_stops(tmp_path: Path) -> None:
    path = run_file(tmp_path, faults="raise@2:1!", checkpoint={"every_samples": 800})
    with launching(path) as launch:
        assert launch.wait() == 1
        told = launch.text()
        assert told.count("\nValueError: planted\n  in File ") == 1, "the user's own frame first; not again after the same error"
        assert "Traceback (most recent call last)" not in told
        assert "giving up: no progress since the last restart" in told
        assert "\nkept: nothing, as no checkpoint was written; the run starts over\n" in told
        assert told.rstrip().endswith(f"to resume: widebatch launch {tmp_path}/run/run.yaml --gpus 0 --procs 2"), "it comes last"
        message = launch.journal("end")[-1]["message"]
        assert message.startswith("rank 1 failed: ValueError: planted (File ")
        assert message.endswith(" at step 2")
        assert "Traceback (most recent call last)" in (tmp_path / "run" / "logs" / "rank-1.log").read_text(), "the whole of it"


def test_a_mistake_of_the_user_is_one_line_and_status_2(tmp_path: Path) -> None:
    with launching(run_file(tmp_path), "--recipe.samples", "65") as launch:
        assert launch.wait() == 2
        errors = [line for line in launch.text().splitlines() if line.startswith("error:")]
        errors = [line.replace("error: rank 1: ", "error: ") for line in errors]  # whichever rank saw it first
        assert errors == ["error: recipe.samples: is 65, but the recipe's data has 64 samples; write 64 or leave it out"]


def test_a_killed_launcher_leaves_a_checkpoint_no_process_and_no_lock(tmp_path: Path) -> None:
    path = run_file(tmp_path, **LONG)
    with launching(path) as launch:
        launch.at_step(4)
        with launching(path) as second:
            assert second.wait() == 2
            assert f"is in use by widebatch launch, process {launch.process.pid} on " in second.text()
        launch.process.kill()
        launch.process.wait()
        with launching(path) as again:  # at once: it waits for the ranks, which save
            pids = again.at_step(1)
            again.process.terminate()
            assert again.wait() == 75, again.text()
            assert all(pid not in again.left() for pid in pids)
        starts, ends = again.journal("start"), again.journal("end")
        assert [e["reason"] for e in ends] == ["stop_requested"] * 2
        assert starts[1]["step"] == ends[0]["step"] > 3, "no step was lost"


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_launching_process_costs_a_restart_and_no_step(tmp_path: Path, ranks: int) -> None:
    path = run_file(tmp_path, batch={"micro": 4}, **LONG)
    with launching(path, ranks=ranks) as launch:
        pid = launch.at_step(4)[0]
        os.kill(launch.agent(pid), signal.SIGKILL)
        wait_for(lambda: "restart 1 of 3" in launch.text(), "restart")
        assert launch.at_step(5)[0] != pid
        launch.process.terminate()
        assert launch.wait() == 75, launch.text()
        starts, ends = launch.journal("start"), launch.journal("end")
        assert starts[1]["step"] == ends[0]["step"]


def test_a_kill_before_any_checkpoint_is_a_restart_and_a_slow_rank_alone_is_named(tmp_path: Path, whole: dict[int, float]) -> None:
    slow = {"slow_rank": 1, "slow_ms": 200, "faults": "kill@9:1"}
    path = run_file(tmp_path, epochs=3, checkpoint={"every_samples": 800}, recipe=slow, watch={"wandb": "offline"})
    with launching(path, env={"WANDB_API_KEY": CANARY}) as launch:
        launch.at_step(2)
        argv = launch.argv()
        assert launch.wait() == 0, launch.text()
        windows, starts = launch.journal("window"), launch.journal("start")
        told = [n["message"] for n in launch.journal("notice") if n["code"] == "straggler"]
    assert [s["step"] for s in starts] == [0, 0], "from the beginning: nothing was saved"
    assert windows[-1]["reliability/restarts"] == 1
    assert windows[-1]["reliability/lost_s"] > 0
    assert 0 < windows[-1]["reliability/goodput_pct"] <= 100
    assert {step: loss for step, loss in whole.items() if step <= 24} == launch.losses()
    assert b"accelerate" in argv, "the processes were there"
    assert CANARY.encode() not in argv
    assert [f for f in tmp_path.rglob("*.wandb") if f.stat().st_size]
    assert not [f for f in tmp_path.rglob("*") if f.is_file() and CANARY.encode() in f.read_bytes()], "a secret in a file"
    for text in told:  # none where other programs have the CPU: then a rank's time says nothing of the rank
        found = re.fullmatch(rf"rank 1 is a straggler: {BUSY}; that is (\d+) % of the time, for 3 windows", text)
        assert found, told
        assert float(found[1]) >= 200
        assert float(found[1]) > float(found[2])
        assert int(found[3]) > 10


def newest(folder: Path) -> int:
    """Samples of the newest committed checkpoint; 0 where there is none."""
    return max([int(path.name.split("-")[1]) for path in (folder / "run" / "checkpoints").glob("samples-*")], default=0)


@pytest.mark.parametrize("hours", [-1, pytest.param(1, marks=pytest.mark.slow)])
def test_a_clock_that_jumps_by_an_hour_steers_nothing(tmp_path: Path, whole: dict[int, float], hours: int) -> None:
    """Back and forth while a run trains, and once more between two starts: only how long ago it began cannot be known then."""
    clock, env = tmp_path / "clock", {"PYTHONPATH": f"{ROOT}{os.pathsep}{SITE}", "CLOCK": str(tmp_path / "clock")}
    set_clock(clock, 0)
    path = run_file(tmp_path, pace_ms=100, restart={"hang_s": 20}, checkpoint={"every_samples": None, "every_minutes": 0.01})
    with launching(path, env=env) as launch:
        for step, seconds in ((4, 3600 * hours), (8, -3600 * hours), (12, 0)):
            launch.at_step(step)
            set_clock(clock, seconds)
        pids = launch.at_step(16)
        now = wait_for(lambda: launch.beat(0), "a beat").step
        wait_for(lambda: newest(tmp_path) > 8 * now, "a checkpoint that was written while the clock was right")
        os.kill(pids[1], signal.SIGKILL)
        set_clock(clock, 3600 * hours)
        assert launch.wait() == 0, launch.text()
        restarts = [n["message"] for n in launch.journal("notice") if n["code"] == "restarted"]
        told = [n["message"] for n in launch.journal("notice") if n["code"] == "clock"]
        windows, saves = launch.journal("window"), launch.journal("checkpoint")
        assert launch.losses() == whole
    assert len(restarts) == 1, "no rank seemed to hang"
    assert restarts[0].startswith("rank 1 was killed"), restarts
    assert len(saves) > 2, "the cadence goes by no wall clock"
    before = [w["reliability/goodput_pct"] for w in windows if w["reliability/restarts"] == 0]
    after = [w["reliability/goodput_pct"] for w in windows if w["reliability/restarts"] == 1]
    assert all(0.5 < found <= 100 for found in before[2:]), "nothing of three jumps is seen in it"
    if hours > 0:
        trained = [w["progress/trained_s"] for w in windows if w["reliability/restarts"] == 1]
        lost = [0 < found < 100 * s / 3600 for found, s in zip(after, trained, strict=True)]
        assert after, "it was started again"
        assert all(lost), "for an hour nobody trained, as far as anyone can tell"
        assert told == []
    else:
        assert set(after) == {None}
        assert told == ["the clock was set back: the age of the run and reliability/goodput_pct are unknown"]


def test_a_stop_that_one_rank_hears_ends_a_long_window_on_all_at_the_next_steps(tmp_path: Path) -> None:
    path = run_file(tmp_path, epochs=40, pace_ms=1000, watch={"every_steps": 10_000}, checkpoint={"every_samples": 320})
    with launching(path) as launch:
        os.kill(launch.at_step(4)[1], signal.SIGTERM)
        assert launch.wait() == 75, launch.text()
        (end,) = launch.journal("end")
        assert [w["step"] for w in launch.journal("window")] == [1, end["step"]], "the second window was cut short"
        assert 4 <= end["step"] < 320
        assert newest(tmp_path) == 8 * end["step"], "and all is saved"


def test_a_second_signal_ends_the_run_at_once(tmp_path: Path) -> None:
    path = run_file(tmp_path, pace_ms=60_000, watch={"every_steps": 100}, **LONG)  # a step in which no stop can be heard
    with launching(path) as launch:
        launch.at_step(1)
        launch.process.terminate()
        wait_for(lambda: (b := launch.beat(1)) and b.stopping, "the first to be heard")
        heard_s = time.monotonic()
        wait_for(lambda: time.monotonic() > heard_s + SECOND_S, "time for a second one")
        launch.process.terminate()
        assert launch.wait() == 128 + signal.SIGTERM
