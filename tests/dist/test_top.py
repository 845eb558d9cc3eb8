"""widebatch top: all ranks from the run folder alone, while the run goes on and after its end."""

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from harness.config.run_folder import RunFolder
from harness.supervision.rank_status import RankLine, read_ranks
from tests.support.processes import LIMIT_S, environ, run_command

RUN_FILE = """
recipe: {use: digits, width: 4}
batch: {reference: 32, total: 32}
optim: {lr: 0.01}
schedule: {samples: SAMPLES}
watch: {wandb: off, every_steps: 5}
run: {dir: run}
"""
NO_TORCH = "import sys; from launch.cli import main; status = main(['top', 'run']); print('torch' in sys.modules); sys.exit(status)"


def waited(found: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + LIMIT_S
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def launch(here: Path, samples: str, procs: int) -> "subprocess.Popen[bytes]":
    """A run that was started."""
    (here / "run.yaml").write_text(RUN_FILE.replace("SAMPLES", samples))
    argv = [sys.executable, "-m", "launch", "launch", "run.yaml", "--gpus", "0", "--procs", str(procs)]
    with (here / "out.txt").open("ab") as out:
        return subprocess.Popen(argv, cwd=here, env=environ(), stdout=out, stderr=out)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a run on two ranks that goes on for hours; stopped at the end."""
    here = tmp_path_factory.mktemp("top")
    child = launch(here, "500M", 2)
    try:
        waited(lambda: (len(lines := read_ranks(here / "run")) == 2 and all(r.window for r in lines)) or child.poll() is not None)
        yield here
    finally:
        child.send_signal(signal.SIGTERM)
        assert child.wait() == 75, (here / "out.txt").read_text()


def ranks(here: Path) -> list[RankLine]:
    return read_ranks(here / "run")


def test_it_shows_the_ranks_of_a_run_that_goes_on_without_torch(running: Path) -> None:
    told = run_command([sys.executable, "-c", NO_TORCH], running).splitlines()
    assert told[0] == "run  not ended"
    assert told[-1] == "False", "torch is not imported"
    rows = [line.split() for line in told[-3:-1]]
    assert [row[:2] for row in rows] == [["0", "train"], ["1", "train"]]
    before = [r.step for r in ranks(running)]
    waited(lambda: all(r.step > step for r, step in zip(ranks(running), before, strict=True)))


def test_a_rank_that_hears_nothing_is_silent(running: Path) -> None:
    child = ranks(running)[1].pid
    os.kill(child, signal.SIGSTOP)
    try:
        waited(lambda: "silent" in run_command([sys.executable, "-m", "launch", "top", "run"], running))
    finally:
        os.kill(child, signal.SIGCONT)


def test_on_a_terminal_it_is_renewed_until_ctrl_c(running: Path) -> None:
    ours, theirs = pty.openpty()
    env = environ() | {"COLUMNS": "80", "LINES": "24", "TERM": "xterm"}
    argv = [sys.executable, "-m", "launch", "top", "run"]
    child = subprocess.Popen(argv, cwd=running, env=env, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    while seen.count(b"run  not ended") < 3:
        seen += os.read(ours, 1 << 16)
    child.send_signal(signal.SIGINT)
    with suppress(OSError):  # the end of a terminal is an error; who does not read on would hold up its last words
        while os.read(ours, 1 << 16):
            pass
    assert child.wait(LIMIT_S) == 0
    os.close(ours)


def test_after_the_end_it_still_answers_and_leaves_the_folder_as_it_is(tmp_path: Path) -> None:
    child = launch(tmp_path, "640", 4)
    assert child.wait(LIMIT_S) == 0, (tmp_path / "out.txt").read_text()
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "run").rglob("*")}
    told = run_command([sys.executable, "-m", "launch", "top", "run"], tmp_path)
    assert told.startswith("run  ended: complete\nstep 20 of 20  loss ")
    assert [line.split()[-1] for line in told.splitlines()[-4:]] == ["ended"] * 4
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "run").rglob("*")} == before
    assert launch(tmp_path, "640", 2).wait(LIMIT_S) == 0, (tmp_path / "out.txt").read_text()
    assert [r.rank for r in ranks(tmp_path)] == [0, 1], "a start with fewer ranks leaves none of the others'"


def test_a_folder_that_is_no_run_is_told(tmp_path: Path) -> None:
    told = run_command([sys.executable, "-m", "launch", "top", str(tmp_path)], tmp_path, status=2)
    assert told == f"error: top: {tmp_path} is not a run folder: it has no run.yaml; give the run.dir of a run\n"


def test_links_in_the_place_of_its_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    RunFolder(tmp_path / "run").ranks.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "run.yaml").write_text(RUN_FILE.replace("SAMPLES", "640"))
    told = run_command([sys.executable, "-m", "launch", "train", "run.yaml"], tmp_path, status=2)
    assert "ranks is a link" in told
    assert not list((tmp_path / "elsewhere").iterdir())
