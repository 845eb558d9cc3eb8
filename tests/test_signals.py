"""Signals to whichever process of a launch: a stop with a checkpoint, or none where nobody hears it, and no process left."""

from pathlib import Path

import pytest

from tests.bench_signals import STOPS, WHOM, measure

UNHEARD = ("USR1", "launching process")
"""It would kill the process between launcher and ranks: that ignores it, and the ranks hear of it by other ways."""


@pytest.mark.slow
@pytest.mark.parametrize("whom", WHOM)
@pytest.mark.parametrize("name", STOPS)
def test_a_signal_to_whichever_process_saves_and_stops(tmp_path: Path, name: str, whom: str) -> None:
    row = measure(tmp_path / "run", name, whom)
    heard = (name, whom) != UNHEARD
    assert row["what"] == ("saved and stopped" if heard else "goes on")
    assert row["status"] == (75 if heard else None)
    assert row["left"] == 0
