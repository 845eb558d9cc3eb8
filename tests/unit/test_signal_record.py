"""Signals to whichever process of a launch: a stop with a checkpoint, or none where nobody hears it, and no process left."""

import json
from pathlib import Path

import pytest

from tests.bench.signals import OUT, ROWS, STOPS, WHOM, markdown, measure
from tests.support.processes import ROOT
from tests.support.readmes import TEXT

UNHEARD = ("USR1", "launching process")
"""It would kill the process between launcher and ranks: that ignores it, and the ranks hear of it by other ways."""


def test_the_readme_has_the_table_of_what_was_measured() -> None:
    rows = json.loads((ROOT / OUT).read_text())["rows"]
    assert len(rows) == len(ROWS)
    assert not any(row["left"] for row in rows)
    assert markdown(rows) in TEXT


@pytest.mark.slow
@pytest.mark.parametrize("whom", WHOM)
@pytest.mark.parametrize("name", STOPS)
def test_a_signal_to_whichever_process_saves_and_stops(tmp_path: Path, name: str, whom: str) -> None:
    row = measure(tmp_path / "run", name, whom)
    heard = (name, whom) != UNHEARD
    assert row["what"] == ("saved and stopped" if heard else "goes on")
    assert row["status"] == (75 if heard else None)
    assert row["left"] == 0
