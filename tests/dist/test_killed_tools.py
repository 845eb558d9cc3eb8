"""Tools that train: where one of them is killed, and so passes nothing on, what it has started ends too, with a checkpoint."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch.processes.proc_table import there
from tests.support.faults.launching import run_file, wait_for
from tests.support.processes import LIMIT_S, environ

TOOLS = {
    "sweep": ["--batches", "8,16", "--rules", "none", "--seeds", "1", "--chain", "2"],
    "lr-range": [],
    "bench": ["--gpus", "0", "--procs", "1", "--steps", "60"],
    "bench of two ranks": ["--gpus", "0", "--procs", "2", "--steps", "60"],
    "find-batch": ["--gpus", "0", "--procs", "2", "--memory", "64GiB"],
    "verify": ["--gpus", "0", "--procs", "2"],
}
SAVE = ("sweep", "lr-range", "bench", "bench of two ranks")
"""Those whose trials can be gone on with."""


def below(pid: int) -> list[int]:
    """All processes that descend from one."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found, new = list[int](), [pid]
    while new := [child for child, parent in parents.items() if parent in new]:
        found += new
    return found


@pytest.mark.parametrize("tool", TOOLS)
def test_nothing_of_a_killed_tool_trains_on(tmp_path: Path, tool: str) -> None:
    run = run_file(tmp_path, epochs=1_000_000, pace_ms=200, watch={"use": []})
    argv = [sys.executable, "-m", "launch", tool.split()[0], str(run), *TOOLS[tool]]
    with (tmp_path / "output").open("wb") as out:
        process = subprocess.Popen(argv, cwd=tmp_path, env=environ(), stdout=out, stderr=subprocess.STDOUT)

    def trains() -> bool:
        assert process.poll() is None, (tmp_path / "output").read_text()
        return any(p.stat().st_size for p in tmp_path.glob("*.ids"))

    pids: list[int] = []
    try:
        wait_for(trains, "first pass")
        pids = below(process.pid)
        process.kill()
        process.wait(LIMIT_S)
        wait_for(lambda: not there(pids), "end of what it started")
    finally:
        process.kill()
        for pid in there(pids):
            os.kill(pid, signal.SIGKILL)
    assert len(pids) > 1
    assert f"process {process.pid} is gone: what it started is asked to stop" in (tmp_path / "output").read_text()
    if tool in SAVE:
        assert list(tmp_path.rglob("checkpoints/samples-*/manifest.json")), "a trial saves as it stops"
