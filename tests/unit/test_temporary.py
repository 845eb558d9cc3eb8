"""What runs make in the temporary folder goes with them, also where they are killed; what is not theirs stays."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from torch.distributed.nn.jit import instantiator

from harness.supervision.temporary_folders import LOCK, remove_dead, temporary_folder
from launch.processes.proc_table import members, there
from tests.cluster.slurm import wait_until
from tests.support.processes import LIMIT_S, ROOT, environ

RECIPE = """
from dataclasses import dataclass
from multiprocessing.process import current_process
import torch
from harness.recipes.base import Recipe

@dataclass(frozen=True)
class Mine(Recipe):
    workers: int = 1
    def model(self):
        return torch.nn.Linear(4, 1)
    def data(self, split):
        x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
        return [{"x": row, "y": row.sum()} for row in x]
    def loss(self, model, batch):
        with open("sockets", "a") as told:
            print(current_process()._config.get("tempdir", ""), file=told)
        return (model(batch["x"])[:, 0] - batch["y"]).square().sum(), len(batch["y"])
"""
HOLDER = """
import os, sys, time
from pathlib import Path
from tempfile import gettempdir
from harness.supervision.temporary_folders import own

own(Path(sys.argv[1]))
child = os.fork() if len(sys.argv) > 2 else -1
if child:
    print(child, flush=True)
time.sleep(3600)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder of its own, for this process and those it starts; its name is short enough for sockets."""
    folder = Path(tempfile.mkdtemp())
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))  # torch's, for all runs
    yield folder
    shutil.rmtree(folder)


TORCH_LEAVES = hasattr(instantiator, "_TEMP_DIR")
"""Whether torch itself makes a folder in each process, as 2.9 does, which a killed one leaves."""


def launch_command(folder: Path, *argv: str) -> list[str]:
    path = folder / "run.yaml"
    (folder / "mine.py").write_text(RECIPE)
    path.write_text(
        "recipe: {use: 'mine.py:Mine'}\nbatch: {reference: 8, total: 8}\noptim: {lr: 0.001}\nschedule: {epochs: 4}\n"
        f"watch: {{wandb: offline, every_steps: 3}}\nrun: {{dir: {folder}/run}}\n"
    )
    return [sys.executable, "-m", "launch", *argv[:1], str(path), *argv[1:]]


def test_launches_leave_nothing_in_the_temporary_folder_and_clear_away_what_a_killed_one_left(
    tmp_path: Path, temporary: Path
) -> None:
    two = ("launch", "--gpus", "0", "--procs", "2")
    argv = launch_command(tmp_path, *two, "--schedule.epochs", "1000000")
    with subprocess.Popen(argv, cwd=tmp_path, env=environ()) as launcher:
        try:
            wait_until(lambda: any(temporary.glob(f"*wandb-media/{LOCK}")), "the run, and W&B")
        finally:
            for pid in [launcher.pid, *(processes := members(launcher.pid))]:
                os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not there(processes), "the end of every process")
    left = sorted(folder.name.split("-")[0] for folder in temporary.iterdir())
    assert left[:2] == ["pymp", "pymp"], "a folder for each rank's workers, which nobody could remove"
    assert "wandb" in left, "of W&B's service, which was killed too"
    assert any((tmp_path / "run" / "logs" / "torchrun").iterdir())

    alone = ("launch", "--gpus", "0", "--procs", "1", "--run.dir", str(tmp_path / "other"))
    for command in ((*alone, "--watch.wandb", "off"), two):
        argv = launch_command(tmp_path, *command)
        done = subprocess.run(argv, cwd=tmp_path, env=environ(), timeout=LIMIT_S, check=False)
        assert done.returncode == 0
        assert [folder for folder in temporary.iterdir() if not (TORCH_LEAVES and folder.name.startswith("tmp"))] == [], command


def test_data_workers_work_where_the_name_of_the_temporary_folder_is_too_long_for_a_socket(tmp_path: Path) -> None:
    """As Slurm's per-job folders are; batches are handed over by sockets, of which Linux allows names of 107 bytes."""
    folder = tmp_path / ("long-" * 20)
    folder.mkdir()
    argv = launch_command(tmp_path, "train", "--watch.wandb", "off")
    env = environ() | {"TMPDIR": str(folder), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    done = subprocess.run(argv, cwd=tmp_path, env=env, text=True, capture_output=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("is too long for the name of a socket: data workers have theirs in /tmp") == 1
    assert list(folder.iterdir()) == []
    (sockets,) = {Path(line) for line in (tmp_path / "sockets").read_text().splitlines() if line}
    assert sockets.name.startswith("pymp-")
    assert not sockets.is_relative_to(folder)
    assert not sockets.exists()


def test_a_folder_of_a_tool_is_gone_when_it_ends_and_when_it_fails(temporary: Path) -> None:
    with temporary_folder("tool-") as folder:
        remove_dead()
        assert folder.exists()
    with pytest.raises(KeyError), temporary_folder("tool-"):
        raise KeyError
    assert list(temporary.iterdir()) == []


@contextmanager
def holder(folder: Path, *argv: str) -> Iterator[int]:
    """A process owns a folder, and is then killed; the child that it has forked."""
    folder.mkdir(mode=0o700)
    argv = (sys.executable, "-c", HOLDER, str(folder), *argv)
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environ()) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.kill()


def test_a_folder_is_dead_when_the_last_of_its_processes_is(temporary: Path) -> None:
    with holder(temporary / "a", "with a child") as child:
        remove_dead()
        assert (temporary / "a").exists(), "its process lives"
    remove_dead()
    assert (temporary / "a").exists(), "the child that it forked lives"
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: not there([child]), "its end")
    remove_dead()
    assert not (temporary / "a").exists()


def test_the_next_start_touches_nothing_else(temporary: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Folders without our file, those that others may open, links, another user's: all stay."""
    for name, mode in {"pymp-abc": 0o700, "torchelastic_x": 0o700, "open": 0o755, "group": 0o770, "theirs": 0o700}.items():
        (temporary / name).mkdir()
        (temporary / name).chmod(mode)
        (temporary / name / "file").write_text("kept")
    for name in ("open", "group", "theirs"):
        (temporary / name / LOCK).touch()
    if os.geteuid() == 0:
        os.chown(temporary / "theirs", 12345, 12345)
    else:
        shutil.rmtree(temporary / "theirs")
    (elsewhere := tmp_path / "elsewhere").mkdir(mode=0o700)
    (elsewhere / LOCK).touch()
    (temporary / "link").symlink_to(elsewhere)
    (temporary / "linked-lock").mkdir(mode=0o700)
    (temporary / "linked-lock" / LOCK).symlink_to(elsewhere / LOCK)
    (temporary / "a file").touch()
    before = sorted(temporary.rglob("*"))
    remove_dead()
    assert sorted(temporary.rglob("*")) == before
    assert (elsewhere / LOCK).exists()
    assert capfd.readouterr() == ("", "")


def test_what_cannot_be_removed_or_read_is_a_note_and_no_error(
    temporary: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with holder(temporary / "a"):
        pass
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda name: Path(name).rmdir())  # it is not empty
        remove_dead()
        assert capfd.readouterr().err.startswith(f"note   {temporary}/a was left by a run that was killed, and cannot be removed")
        patch.setattr(tempfile, "tempdir", str(temporary / "missing"))
        remove_dead()
        assert capfd.readouterr().err.startswith("note   the temporary folder cannot be read")


def test_folders_named_in_a_dead_one_go_with_it_if_they_are_ours(temporary: Path, tmp_path: Path) -> None:
    for name in ("socket", "open", "other"):
        (temporary / name).mkdir(mode=0o755 if name == "open" else 0o700)
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    with holder(temporary / "a"):
        (temporary / "a" / LOCK).write_text("socket\nopen\nmissing\n../elsewhere\n..\n.\n")
    remove_dead()
    assert {path.name for path in temporary.iterdir()} == {"open", "other"}
    assert (tmp_path / "elsewhere").exists()
