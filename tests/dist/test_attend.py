"""Each of several hosts watches its own ranks: who is killed or stands still is named and started again, who erred is told once."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.processes.supervisor import SECOND_S
from tests.cluster.hosts import Hosts, missing
from tests.dist.test_hosts import MEET, Runs
from tests.dist.test_resume import SIZE, journal
from tests.support.faults.launching import run_file, wait_for
from tests.support.processes import LIMIT_S

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(missing()), reason=missing())]
TWO = ("--procs", "2", "--nodes", "2", *MEET)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Two hosts."""
    with Hosts(tmp_path_factory.mktemp("hosts"), 2) as up:
        yield up


def losses(folder: Path) -> dict[int, float]:
    """The loss of each step, as it was told last."""
    return {step["step"]: step["train/loss"] for step in journal(folder, "step")}


def test_a_killed_and_a_stopped_rank_are_named_by_their_host_and_no_step_is_lost(hosts: Hosts, tmp_path: Path) -> None:
    whole, met = tmp_path / "whole", tmp_path / "met"
    for folder in (whole, met):
        folder.mkdir()
    with Runs(hosts, whole, *TWO) as runs:
        run_file(whole, size=SIZE, epochs=4)
        assert [p.wait(timeout=LIMIT_S) for p in (runs.start(1), runs.start(2))] == [0, 0], runs.log()
    run_file(met, faults="kill@9:1 stop@30:1", size=SIZE, epochs=4, pace_ms=20.0, restart={"hang_s": 15})
    with Runs(hosts, met, *TWO) as runs:
        both = [runs.start(1), runs.start(2)]
        runs.wait_for("step")
        assert runs.start(1).wait(timeout=LIMIT_S) == 2, "the host has a launcher of this run already"
        assert [p.wait(timeout=LIMIT_S) for p in both] == [0, 0], runs.log()
        told = runs.log()
    assert f"error: run.dir: {met}/run/logs/n1 is in use by widebatch launch, process {both[0].pid} on n1" in told
    assert "local rank 0 was killed at step 9; restart 1 of 3" in told
    assert "local rank 0 hung for " in told
    assert "s, its process is stopped (SIGSTOP), at step " in told
    assert "; restart 2 of 3" in told
    assert told.count("; the hosts restart their ranks together") == 2, "the other host's rank lost its peer each time"
    assert losses(met) == pytest.approx(losses(whole), rel=1e-6)
    assert {p.name for p in (met / "run" / "logs").iterdir()} == {"n1", "n2"}
    logs = [(met / "run" / "logs" / host / "rank-0.log").read_text() for host in ("n1", "n2")]
    assert ["complete after 51 steps" in log for log in logs].count(True) == 1, "rank 0 tells it, on one host"


def test_a_mistake_is_told_once_by_each_host_and_not_tried_again(hosts: Hosts, tmp_path: Path) -> None:
    run_file(tmp_path, size=SIZE)
    with Runs(hosts, tmp_path, *TWO, samples=SIZE + 1) as runs:
        assert [p.wait(timeout=LIMIT_S) for p in (runs.start(1), runs.start(2))] == [2, 2], runs.log()
        errors = [line for line in runs.log().splitlines() if "error:" in line]
    mistake = f"recipe.samples: is {SIZE + 1}, but the recipe's data has {SIZE} samples; write {SIZE} or leave it out"
    assert [e.replace("rank 1: ", "") for e in errors] == [f"error: {mistake}"] * 2


def test_a_second_signal_ends_a_host_at_once_and_leaves_nothing(hosts: Hosts, tmp_path: Path) -> None:
    run_file(tmp_path, size=SIZE, epochs=10_000, pace_ms=60_000.0)  # a step in which no stop can be heard
    with Runs(hosts, tmp_path, *TWO) as runs:
        both = [runs.start(1), runs.start(2)]
        runs.wait_for("start")
        for process in both:
            process.send_signal(signal.SIGTERM)
        asked_s = time.monotonic()
        wait_for(lambda: time.monotonic() > asked_s + 2 * SECOND_S, "time for a second one")
        for process in both:
            process.send_signal(signal.SIGTERM)
        assert [p.wait(timeout=LIMIT_S) for p in both] == [128 + signal.SIGTERM] * 2, runs.log()
        assert [hosts.pids(n) for n in (1, 2)] == [[], []]
