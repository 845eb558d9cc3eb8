"""restart.spares: ranks that start again are forks of an idle process; without it they start as at first."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.faults.launching import Launch, run_file, wait_for

RANKS, EPOCHS = 2, 100


def launched(folder: Path, backend: str = "ddp") -> Launch:
    """A run that takes its time."""
    sections: dict[str, Any] = {
        "backend": {"name": backend},
        "restart": {"spares": 1, "budget": 3},
        "checkpoint": {"every_samples": 80},
    }
    return Launch(run_file(folder, epochs=EPOCHS, pace_ms=100, **sections), RANKS)


def parent(pid: int) -> int:
    """Of a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def spare_of(launch: Launch) -> int:
    """The spare's process, once it waits: its standard input is another one then."""

    def waits() -> int:
        assert launch.process.poll() is None, launch.text()
        for pid in launch.left():
            try:
                is_spare = b"harness.tools.spare" in Path(f"/proc/{pid}/cmdline").read_bytes()
                if is_spare and parent(pid) == launch.process.pid and str(Path(f"/proc/{pid}/fd/0").readlink()) == os.devnull:
                    return pid
            except OSError:
                continue
        return 0

    found: int = wait_for(waits, "spare")
    return found


def next_start(launch: Launch, before: Sequence[int], *, ticks: int = 1) -> list[int]:
    """The processes of all ranks, which are none of those `before`, once they are in their step of this number."""

    def again() -> list[int]:
        assert launch.process.poll() is None, launch.text()
        beats = [launch.beat(rank) for rank in range(RANKS)]
        pids = [beat.pid for beat in beats if beat and beat.ticks >= ticks]
        return pids if len(pids) == RANKS and not set(pids).intersection(before) else []

    pids: list[int] = wait_for(again, "start")
    return pids


def killed(launch: Launch, rank: int) -> list[int]:
    """Kill a rank, once the run has come further: the processes of all ranks at the next start."""
    before = next_start(launch, [], ticks=15)
    os.kill(before[rank], signal.SIGKILL)
    return next_start(launch, before)


def test_ranks_that_start_again_are_forks_of_the_spare_and_without_it_they_start_all_the_same(tmp_path: Path) -> None:
    launch = launched(tmp_path)
    try:
        spare = spare_of(launch)
        assert [parent(pid) for pid in killed(launch, 0)] == [spare] * RANKS
        assert [parent(pid) for pid in killed(launch, 1)] == [spare] * RANKS, "it can do so more than once"
        before = next_start(launch, [], ticks=15)
        os.kill(spare, signal.SIGKILL)
        assert spare not in [parent(pid) for pid in next_start(launch, before)]
        (tmp_path / "fast").touch()
        assert launch.wait() == 0, launch.text()
        assert launch.left() == [], "the spare, too, is gone"
    finally:
        launch.end()
    starts, steps = launch.journal("start"), launch.journal("step")
    assert len(starts) == 4
    assert {s["step"]: s["samples"] for s in steps} == {step: 8 * step for step in range(1, 8 * EPOCHS + 1)}
    told = [n["message"] for n in launch.journal("notice") if n["code"] == "restarted"]
    assert [text.partition("; ")[2] for text in told] == ["restart 1 of 3", "restart 2 of 3", "restart 3 of 3"]
    assert told[2].startswith("the process that starts the ranks was killed")
    assert "note: the spare ended with -9: the ranks start without it\n" in launch.text()


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_forks_of_the_spare_stop_and_save_with_their_launcher(tmp_path: Path, end: signal.Signals) -> None:
    launch = launched(tmp_path, "fsdp")
    try:
        spare = spare_of(launch)
        assert [parent(pid) for pid in killed(launch, 1)] == [spare] * RANKS
        launch.process.send_signal(end)
        assert launch.wait() == (75 if end == signal.SIGTERM else -signal.SIGKILL), launch.text()
        wait_for(lambda: not launch.left(), "end of all")
    finally:
        launch.end()
    assert [ended["reason"] for ended in launch.journal("end")] == ["failed", "stop_requested"]
