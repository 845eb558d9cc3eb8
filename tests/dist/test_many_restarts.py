"""A run that is started again and again leaks nothing, and its journal is readable though each start was cut inside a line."""

import sys
from collections import Counter
from pathlib import Path

import pytest

from harness.analysis.journal_lines import read
from harness.config.schema import RestartConfig
from launch.processes.command import Command
from launch.processes.supervisor import supervise
from tests.support.processes import ROOT

RANK = """
import os, sys
from pathlib import Path
from harness.analysis.journal_lines import read
from harness.supervision.heartbeat import Heartbeat
from harness.supervision.launch_env import launched
from harness.supervision.output_redirect import redirect
from harness.telemetry.events import Windowed
from harness.watch.journal_writer import Journal

told = launched(os.environ)
redirect(told, 0)
pulse, path = Heartbeat(told.heartbeat(0)), Path(sys.argv[1])
step = len(list(read(path))) + 1 if path.exists() else 1
Journal(path)(Windowed(step, step, {"train/loss": 1.0}))
with path.open("ab") as file:
    file.write(b'{"event": "win')
pulse.at(step)
pulse.tick()
pulse.ended(1, f"cut at {step}")
print("step", step)
os._exit(1)
"""
RESTARTS = 8


def open_files() -> Counter[str]:
    """What this process has open, and how often."""
    links = list(Path("/proc/self/fd").iterdir())
    return Counter(str(link.readlink()) for link in links if link.is_symlink())


def test_many_restarts_leak_nothing_and_leave_a_journal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    journal, before = tmp_path / "events.jsonl", open_files()
    command = Command((sys.executable, "-c", RANK, str(journal)), {})
    status = supervise(command, tmp_path, str(tmp_path / "checkpoints"), 1, 1, RestartConfig(budget=RESTARTS), "the same")
    shown = capfd.readouterr()
    assert status == 1
    assert shown.err.count("note: ") == RESTARTS, shown.err
    assert f"restart.budget {RESTARTS} is spent" in shown.err
    assert [line["step"] for line in read(journal)] == list(range(1, RESTARTS + 2))
    assert (tmp_path / "logs" / "rank-0.log").read_text().splitlines() == [f"step {n}" for n in range(1, RESTARTS + 2)]
    assert sorted(p.name for p in (tmp_path / "logs").iterdir()) == ["launcher.log", "rank-0.log"]
    left = open_files() - before
    assert set(left) <= {"/memfd:rank-0 (deleted)", str(tmp_path)}, left
    assert left.total() <= 3, "its heartbeat, its error, and the run folder, however often it was started"
