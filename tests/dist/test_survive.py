"""What is thought of ranks, of faults and of restarts; pulses, locks and the lines of a log. All without torch."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.config.errors import UserError
from harness.supervision.exit_codes import EXIT, MEANING, markdown
from harness.supervision.fault_detection import Fault, RankStatus, cut_short, first_failure, hung, result
from harness.supervision.heartbeat import WARM_TICKS, Beat, Heartbeat, read
from harness.supervision.launch_env import Launched, launched
from harness.supervision.run_lock import FolderLock
from launch.processes.output_relay import plain
from launch.processes.restart_policy import Restarts
from launch.processes.survivors import Survivors
from tests.support.processes import LIMIT_S, environ
from tests.support.readmes import TEXT

BEAT = Beat(pid=1, beat_s=100.0, moved_s=100.0, ticks=7, step=7, phase="train", warm=True)


def rank(number: int, *, alive: bool = True, frozen: bool = False, **changes: object) -> RankStatus:
    """A rank that trains, but for some changes."""
    return RankStatus(number, replace(BEAT, **changes), alive, frozen)  # type: ignore[arg-type]


def test_a_pulse_tells_phase_step_and_end(tmp_path: Path) -> None:
    heard: list[bool] = []
    heartbeat = Heartbeat(tmp_path / "rank-0.pulse", heard.append)
    told = read(tmp_path / "rank-0.pulse")
    assert told is not None
    assert (told.pid, told.phase, told.warm, told.status) == (os.getpid(), "start", False, None)
    heartbeat.in_group(3)
    heartbeat.at(40)
    for _ in range(WARM_TICKS):
        heartbeat.tick()
    assert heard == [True], "the first steps are slow, and may be"
    with heartbeat.phase("eval"):
        heartbeat.tick()
        told = read(tmp_path / "rank-0.pulse")
        assert told is not None
        assert (told.phase, told.step, told.warm) == ("eval", 40 + WARM_TICKS, False), "the first batches of an evaluation too"
    with heartbeat.phase("checkpoint"):
        pass
    assert heard == [True, False, True, False, True]
    heartbeat.stopping(15)
    heartbeat.ended(1, "ValueError: größer " + "x" * 2000)
    heartbeat.ended(0, "later")
    told = read(tmp_path / "rank-0.pulse")
    assert told is not None
    assert (told.phase, told.stopping, told.status, told.group) == ("train", 15, 1, 3)
    assert told.text.startswith("ValueError: größer xxx"), "the first word counts, and fits"


def test_no_pulse_is_none_and_half_a_pulse_too(tmp_path: Path) -> None:
    assert read(tmp_path / "none") is None
    (tmp_path / "half").write_bytes(b"WBP1")
    assert read(tmp_path / "half") is None
    Heartbeat().tick()


def test_who_looks_while_a_pulse_is_written_sees_no_zeros(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from harness.supervision.heartbeat import Heartbeat\n"
        "pulse = Heartbeat(Path(sys.argv[1])); print('there', flush=True)\nwhile True: pulse.tick(); pulse.beat()"
    )
    path = tmp_path / "rank-0.pulse"
    with subprocess.Popen([sys.executable, "-c", code, str(path)], env=environ(), stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "there\n"
        beats = [read(path) for _ in range(5_000)]
        writer.kill()
    assert all(b is not None and b.moved_s > 0 and b.beat_s > 0 for b in beats)


@pytest.mark.parametrize(
    ("looks", "kind", "who", "text"),
    [
        ([rank(0), rank(1)], None, None, ""),
        ([rank(0), rank(1, alive=False)], "killed", 1, "was killed"),
        ([rank(0, status=1, ended_s=100.2, text="RuntimeError: Connection closed by peer"), rank(1, alive=False)], "killed", 1, ""),
        (
            [
                rank(0, status=1, ended_s=99.0, text="RuntimeError: Connection reset by peer"),
                rank(1, status=1, ended_s=99.5, text="ValueError: boom"),
            ],
            "failed",
            1,
            "ValueError: boom",
        ),
        ([rank(0, status=4, ended_s=1.0, text="ran out of memory"), rank(1)], "memory", 0, "memory"),
        (
            [rank(0, status=2, ended_s=2.0, text="run.seed: x"), rank(1, status=2, ended_s=1.0, text="rank 1: run.seed: x")],
            "user",
            1,
            "",
        ),
        ([rank(0, status=3, ended_s=2.0), rank(1, status=3, ended_s=3.0)], "guard", 0, ""),
        ([rank(0, alive=False, stopping=15), rank(1)], None, None, ""),
        ([rank(0, status=75), rank(1, status=0)], None, None, ""),
        ([RankStatus(0, None, False), rank(1)], None, None, ""),
    ],
)
def test_the_first_rank_to_fail_is_found(looks: list[RankStatus], kind: str | None, who: int | None, text: str) -> None:
    fault = first_failure(looks)
    assert (fault.kind if fault else None, fault.rank if fault else None) == (kind, who)
    assert text in str(fault)


def test_a_run_hangs_when_no_rank_goes_on_and_the_one_behind_is_named() -> None:
    def at(now: float, *looks: RankStatus) -> Fault | None:
        return hung(looks, now, 0.0, hang_s=60, start_s=600)

    assert at(159, rank(0), rank(1)) is None
    assert at(161, rank(0), rank(1, warm=False)) is None, "one of them may take longer"
    assert at(161, rank(0), rank(1, moved_s=150)) is None
    beating: Any = {"beat_s": 161.0}
    fault = at(161, rank(0, **beating), rank(1, ticks=6, step=6, **beating))
    assert fault is not None
    assert (fault.rank, fault.step) == (1, 6)
    fault = at(161, rank(0, ticks=6, **beating), rank(1, frozen=True, **beating))
    assert str(fault) == "rank 1 hung for 61 s, its process is stopped (SIGSTOP), at step 7"
    fault = at(161, rank(0, **beating), rank(1))
    assert fault is not None
    assert fault.rank == 1, "silent"
    fault = at(161, rank(0, **beating), rank(1, **beating))
    assert fault is not None
    assert fault.rank is None, "all at one place: nobody is accused"
    assert str(fault) == "no rank made progress for 61 s in training, longer than restart.hang_s, at step 7"
    building: Any = {"beat_s": 701.0, "warm": False, "ticks": 0, "step": 0}
    fault = at(701, rank(0, phase="data", **building), rank(1, phase="start", **building))
    assert (
        str(fault) == "no rank made progress for 601 s in the recipe's data(), longer than restart.start_s, before the first step"
    )
    assert at(601, RankStatus(0, None, False)) is not None, "no rank comes up"
    assert at(599, RankStatus(0, None, False)) is None


def test_the_result_is_what_all_ranks_told() -> None:
    assert result([rank(0), rank(1, status=0)]) is None
    assert result([rank(0, status=0), rank(1, status=0)]) == 0
    assert result([rank(0, status=75), rank(1, status=75)]) == 75
    assert cut_short([rank(0, alive=False, stopping=2), rank(1)]) == 2
    assert cut_short([rank(0, status=75, alive=False, stopping=2)]) == 0


def test_a_fault_costs_one_unit_and_needs_progress_since_the_last() -> None:
    killed = Fault("killed", 1, 10, "was killed")
    first = Restarts(budget=2, micro=8).after(killed, "")
    assert isinstance(first, Restarts)
    assert (first.used, first.step, first.micro) == (1, 10, 8)
    assert "no progress since the last restart" in str(first.after(killed, ""))
    again = first.after(killed, "samples-000000000080")
    assert isinstance(again, Restarts), "a newer checkpoint is progress"
    assert isinstance(first.after(replace(killed, step=11), ""), Restarts), "a further step too"
    assert again.after(replace(killed, step=12), "") == "restart.budget 2 is spent"
    assert Restarts(budget=0, micro=8).after(killed, "") == "restart.budget is 0"
    assert "no progress before it" in str(Restarts(budget=2, micro=8).after(replace(killed, step=0), ""))
    assert "repeat" in str(Restarts(budget=2, micro=8).after(Fault("user", 0, 0, "run.seed: x"), ""))


def test_out_of_memory_halves_the_micro_batch_until_it_is_one() -> None:
    fault = Fault("memory", 1, 1, "ran out of memory at micro-batch 2")
    after = Restarts(budget=3, micro=2).after(fault, "")
    assert isinstance(after, Restarts)
    assert after.micro == 1
    assert "micro-batch 1, more passes a step, the same global batch" in after.words(fault)
    assert "recompute" in str(after.after(fault, ""))


def test_the_launcher_leaves_ranks_be_that_continue_without_a_lost_one_and_no_others() -> None:
    def left(*looks: RankStatus, budget: int = 2) -> list[int]:
        survivors = Survivors(Restarts(budget, micro=4), lambda: "")
        return [look.rank for look in survivors.answerable(looks)]

    gone = rank(2, alive=False, group=1)
    assert left(rank(0, group=1), rank(1, group=1), gone) == [0, 1], "about to continue"
    assert left(rank(0, phase="start"), rank(1, group=1), gone) == [0, 1], "about to train, and to notice"
    assert left(rank(0, group=1), rank(1), gone) == [0, 1, 2], "rank 1 trains, and needs all ranks"
    assert left(rank(0, group=1), rank(1, group=1), replace(gone, beat=BEAT)) == [0, 1, 2], "it was lost before it trained"
    assert left(replace(gone, rank=0), rank(1, group=1)) == [0, 1], "rank 0 has the journal"
    assert left(rank(0, group=1, status=1, text="ValueError"), gone) == [0, 2], "another one has failed"
    assert left(rank(0, group=1), gone, budget=0) == [0, 2]
    assert left(rank(0, group=1), rank(1, group=1)) == [0, 1]


def test_each_recovery_is_a_fault_of_the_budget(capsys: pytest.CaptureFixture[str]) -> None:
    survivors = Survivors(Restarts(budget=2, micro=4), lambda: "")
    looks = [rank(0, group=2), rank(1, group=2), rank(2, alive=False, group=1)]
    assert [look.rank for look in survivors.answerable(looks)] == [0, 1]
    assert survivors.lost == {2}
    assert capsys.readouterr().err == "note: rank 2 was killed at step 7; 2 ranks continue without a restart, fault 1 of 2\n"
    assert [look.rank for look in survivors.among(looks)] == [0, 1]
    later = [rank(0, group=3, step=9), rank(1, alive=False, group=2, step=9)]
    assert [look.rank for look in survivors.answerable(later)] == [0]
    assert survivors.restarts.used == 2
    assert "1 rank continues" in capsys.readouterr().err


def test_what_the_launcher_says_reaches_the_ranks() -> None:
    told = Launched(42, "/runs/a b/logs", "/dev/pts/1", "rank 1 was killed")
    assert launched(told.environ()) == told
    assert launched({}) is None


def test_every_end_of_a_run_has_a_status_and_every_status_a_meaning() -> None:
    assert set(EXIT.values()) <= set(MEANING)
    assert len(set(EXIT.values())) >= 4
    assert TEXT.count(markdown()) == 1, "the table in launch/README.md: harness.supervision.exit_codes.markdown()"


def test_a_folder_is_locked_for_others_and_free_when_its_holder_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from harness.supervision.run_lock import FolderLock\n"
        "lock = FolderLock(Path(sys.argv[1])); lock.take('launcher', 'widebatch launch')\n"
        "print('held', flush=True); time.sleep(600)"
    )
    argv = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(argv, env=environ(), stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        lock = FolderLock(tmp_path)
        with pytest.raises(UserError) as caught:
            lock.take("launcher", "me")
        assert f"in use by widebatch launch, process {holder.pid} on " in str(caught.value)
        lock.take("trainer")
        holder.kill()
        holder.wait()
    lock.take("launcher", "me", patience_s=LIMIT_S)
    lock.close()


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        (b"plain", b"plain"),
        (b"line\r", b"line"),
        (b"\x1b[31mred\x1b[0m", b"red"),
        (b"train 10%\r\x1b[2Ktrain 20%\r\x1b[2Knote   spike\r", b"note   spike"),
        (b"\x1b[?25l\x1b[1Gx", b"x"),
    ],
)
def test_a_log_keeps_lines_as_they_stood_at_their_end(line: bytes, kept: bytes) -> None:
    assert plain(line) == kept
