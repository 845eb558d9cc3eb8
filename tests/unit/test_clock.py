"""How old a run is, by clocks that may be wrong; and how often it was started, by its journal."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from harness.analysis.journal_tail import starts
from harness.checkpoint.train_state import State
from harness.telemetry.clock import Age, Clock
from harness.training.resume import aged, fresh_state


def test_a_wall_clock_that_is_set_changes_no_age(monkeypatch: pytest.MonkeyPatch) -> None:
    age = Age.of(time.time() - 9000, 10)
    monkeypatch.setattr(time, "time", lambda real=time.time: real() + 3600)
    assert age.seconds == pytest.approx(9000, abs=1200)
    assert age.began == pytest.approx(time.time() - 9000, abs=1200), "by the clock of now, so that the next start finds it right"


def test_a_run_younger_than_what_is_known_of_it_has_no_age() -> None:
    assert Age.of(time.time() + 3600, 10).seconds is None
    assert Age.of(time.time() - 9, 9000).began is None
    assert Age.of(None, 0).seconds is None
    age, told = aged(State(restarts=1, trained_s=5000.0, lost_s=6000.0, began=time.time() - 10))
    assert age.seconds is None
    assert [n.code for n in told] == ["clock"]
    assert aged(State(restarts=2, began=None))[1] == [], "that was said before"


def written(path: Path, *lines: dict[str, Any]) -> Path:
    """A run folder with such a journal."""
    (path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_every_start_that_the_journal_tells_of_counts(tmp_path: Path) -> None:
    at = {"step": 0, "samples": 0}
    start = {"event": "start", **at, "began": time.time() - 9000}
    window = {"event": "window", **at, "reliability/restarts": 4.0, "reliability/lost_s": 1.5, "progress/trained_s": 2.5}
    assert starts(tmp_path / "events.jsonl") == 0
    assert fresh_state(tmp_path) == State()
    assert starts(written(tmp_path, start) / "events.jsonl") == 1
    assert starts(written(tmp_path, start, start, {"event": "step", **at}) / "events.jsonl") == 2
    state = fresh_state(written(tmp_path, start, window, start))
    assert (state.restarts, state.lost_s, state.trained_s) == (6, 4.0, 0.0)
    assert aged(state)[0].seconds == pytest.approx(9000, abs=1200)


def test_training_time_stands_still_in_a_pause_and_never_goes_back() -> None:
    clock = Clock()
    before = clock.train_s
    with clock.pause("checkpoint"):
        first = clock.train_s
        while clock.wall_s < first + 0.02:
            pass
        assert clock.train_s == first >= before
    assert clock.train_s >= first
    assert clock.pauses["checkpoint"] >= 0.02
