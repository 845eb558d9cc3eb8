"""restart.hang_factor: a hang is found by how long the run's own steps take."""

from dataclasses import replace
from pathlib import Path

import pytest

from harness.supervision.fault_detection import RankStatus, hung
from harness.supervision.heartbeat import Beat
from harness.supervision.step_pace import ENOUGH, StepPace
from tests.support.faults.launching import Launch, run_file

BEAT = Beat(pid=7, beat_s=0.0, moved_s=100.0, ticks=5, step=5, phase="train", warm=True)


def seen(pace: StepPace, beats: list[Beat]) -> float | None:
    """The limit after a rank was seen so."""
    for beat in beats:
        pace.see([RankStatus(0, beat, alive=True)])
    return pace.limit_s


def steps(count: int, step_s: float, *, at_once: int = 1) -> list[Beat]:
    """A rank that is looked at every `at_once` steps."""
    return [replace(BEAT, moved_s=100 + n * step_s, ticks=5 + n) for n in range(0, count * at_once + 1, at_once)]


def test_the_limit_is_a_multiple_of_the_median_step_and_bounded() -> None:
    assert seen(StepPace(50, 1), steps(ENOUGH - 1, 0.5)) is None, "too few are known"
    assert seen(StepPace(50, 1), steps(ENOUGH, 0.5)) == pytest.approx(25)
    assert seen(StepPace(50, 1), steps(ENOUGH, 0.5, at_once=8)) == pytest.approx(25)
    assert seen(StepPace(50, 60), steps(ENOUGH, 0.5)) == 60
    assert seen(StepPace(None, 1), steps(ENOUGH, 0.5)) is None, "it was not asked for"
    slow = [*steps(ENOUGH, 0.5)[:-1], replace(BEAT, moved_s=1000.0, ticks=5 + ENOUGH)]
    assert seen(StepPace(50, 1), slow) == pytest.approx(25), "one long step changes nothing"


def test_only_steps_of_one_process_in_training_count() -> None:
    apart = [replace(beat, pid=number) for number, beat in enumerate(steps(2 * ENOUGH, 0.5))]
    assert seen(StepPace(50, 1), apart) is None
    assert seen(StepPace(50, 1), [replace(beat, phase="eval") for beat in steps(2 * ENOUGH, 0.5)]) is None
    assert seen(StepPace(50, 1), [replace(beat, warm=False) for beat in steps(2 * ENOUGH, 0.5)]) is None


def test_it_is_the_limit_of_a_warm_rank_in_training_and_never_longer_than_hang_s() -> None:
    def found(beat: Beat, step_s: float | None) -> str:
        return str(hung([RankStatus(0, replace(beat, beat_s=130.0), True)], 130.0, 0.0, 60, 600, step_s) or "")

    assert found(BEAT, 20.0).endswith("in training, longer than the usual step by restart.hang_factor, at step 5")
    assert found(BEAT, 31.0) == found(BEAT, None) == ""
    assert found(replace(BEAT, phase="eval"), 20.0) == ""
    assert found(replace(BEAT, warm=False), 20.0) == ""
    assert hung([RankStatus(0, replace(BEAT, beat_s=161.0), True)], 161.0, 0.0, 60, 600, 100.0) is not None


def test_a_rank_that_hangs_is_found_long_before_hang_s(tmp_path: Path) -> None:
    restart = {"hang_s": 3000, "hang_factor": 30, "hang_least_s": 20}
    launch = Launch(run_file(tmp_path, size=64, epochs=20, pace_ms=30, faults="hang@60:1", restart=restart), 2)
    try:
        assert launch.wait() == 0, launch.text()
    finally:
        launch.end()
    (fault,) = [n["message"] for n in launch.journal("notice") if n["code"] == "restarted"]
    assert "in training, longer than the usual step by restart.hang_factor, " in fault
