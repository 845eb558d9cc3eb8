"""Links in a run folder: nothing elsewhere is overwritten or read out by them, in any file that a run writes into its folder."""

import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from harness.analysis.text_plot import Curve, Panel
from harness.config.errors import UserError
from harness.supervision.run_lock import FolderLock
from harness.supervision.safe_files import append_log, append_own, check_folders, read_own, write_once, write_own
from harness.training import script_run
from harness.watch.plot_file import save
from launch.cli import main
from launch.lab.trials import trial_folder
from launch.processes.command import Command
from launch.processes.job_pool import Job, run_jobs
from tests.support.faults.launching import Launch, run_file
from tests.support.processes import ROOT, environ

WRITTEN = ["lock", "run.yaml", "plan.json", "wandb_id", "events.jsonl", "guard.json"]
SHORT = ["--recipe.width", "4", "--schedule.epochs", "6", "--run.stop_after_steps", "3"]


@pytest.mark.parametrize("name", WRITTEN)
def test_a_link_in_a_run_folder_leads_no_write_elsewhere(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret, folder = tmp_path / "secret", tmp_path / "run"
    secret.write_text("hunter2")
    folder.mkdir()
    (folder / name).symlink_to(secret)
    status = main(["train", str(ROOT / "configs" / "digits.yaml"), "--run.dir", str(folder), *SHORT])
    shown = capsys.readouterr()
    assert secret.read_text() == "hunter2"
    assert "hunter2" not in shown.out + shown.err
    assert "Traceback" not in shown.err
    replaced = name in ("run.yaml", "plan.json")  # written whole, in the place of the link
    assert status == (0 if replaced or name in ("wandb_id", "guard.json") else 2), shown.err
    if replaced:
        assert not (folder / name).is_symlink()
    elif status == 2:
        assert f"{folder / name} is a link" in shown.err
    for file in folder.rglob("*"):
        assert not file.is_file() or file.is_symlink() or b"hunter2" not in file.read_bytes()


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """All that a launched run leaves in its folder, and in that of its logs; folders end in a slash."""
    path = run_file(tmp_path_factory.mktemp("launched"), epochs=1, size=8, watch={"wandb": "offline", "trackers": ["tensorboard"]})
    launch, folder = Launch(path, 1), path.parent / "run"
    try:
        assert launch.wait() == 0, launch.text()
    finally:
        launch.end()
    found = [*folder.iterdir(), *(folder / "logs").iterdir()]
    return sorted(f"{p.relative_to(folder)}{'/' if p.is_dir() else ''}" for p in found)


def test_whatever_a_launched_run_leaves_a_link_of_that_name_leads_no_write_elsewhere(
    left: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {
        "checkpoints/",
        "logs/",
        "logs/rank-0.log",
        "ranks/",
        "tensorboard/",
        "wandb/",
        "origin",
        "accelerate.yaml",
        "events.jsonl",
    } <= {*left}
    (tmp_path / "secret").write_text("hunter2")
    (tmp_path / "elsewhere").mkdir()
    run = run_file(tmp_path, epochs=1, size=8)
    for name in left:
        link = tmp_path / "each" / name.replace("/", "-") / "run" / name.rstrip("/")
        link.parent.mkdir(parents=True)
        link.symlink_to(tmp_path / ("elsewhere" if name.endswith("/") else "secret"))
        folder = tmp_path / "each" / name.replace("/", "-") / "run"
        status = main(["train", str(run), "--run.dir", str(folder)])
        told = capsys.readouterr()
        assert (tmp_path / "secret").read_text() == "hunter2", name
        assert not list((tmp_path / "elsewhere").iterdir()), name
        assert "hunter2" not in told.out + told.err, name
        if name.endswith("/") or name.startswith("logs/"):
            assert status == 2, name
            assert f"run.dir: {link} is a link or another thing that is not a folder; remove it" in told.err


@pytest.mark.parametrize("name", ["checkpoints", "wandb", "logs", "logs/host"])
def test_a_launcher_and_a_script_look_at_the_folders_too(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link = tmp_path / "run" / name
    link.parent.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    link.symlink_to(tmp_path / "elsewhere")
    argv = ["launch", str(run_file(tmp_path)), "--gpus", "0", "--recipe.samples", "64"]
    assert main(argv) == 2
    assert f"{link} is a link" in capsys.readouterr().err
    with pytest.raises(UserError, match="is a link"):
        script_run._sit(FolderLock(tmp_path / "run"), tmp_path / "run", own_checkpoints=True)
    assert not list((tmp_path / "elsewhere").iterdir())
    kept = name == "checkpoints"
    check = nullcontext() if kept else pytest.raises(UserError)
    with check:
        check_folders(tmp_path / "run", own_checkpoints=not kept)  # which lie elsewhere then


@pytest.mark.parametrize("where", ["trials", "trials/micro-4"])
def test_no_tool_s_trial_lives_behind_a_link(where: str, tmp_path: Path) -> None:
    link = tmp_path / where
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(tmp_path)
    with pytest.raises(UserError, match=r"--out: .* is a link"):
        trial_folder(tmp_path, "micro-4")


def test_a_plot_replaces_a_link(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2")
    for end in ("svg", "png"):
        (tmp_path / f"lr.{end}").symlink_to("secret")
    save([Panel("a", "x", "y", (Curve("c", ((1.0, 1.0, 0.0),)),))], tmp_path / "lr")
    assert (tmp_path / "secret").read_text() == "hunter2"
    assert b"<svg" in (tmp_path / "lr.svg").read_bytes()


def test_files_are_whole_and_nothing_is_left_beside_them(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_own(path, "one")
    write_own(path, "two \udcff")
    assert path.read_bytes() == b"two \xff"
    assert write_once(tmp_path / "b", "first") == "first"
    assert write_once(tmp_path / "b", "second") == "first"
    assert read_own(tmp_path / "none") is None
    with append_own(path) as file:
        file.write(b"!")
    assert read_own(path) == "two \N{REPLACEMENT CHARACTER}!"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("kind", ["link", "dangling", "fifo", "folder"])
def test_what_is_no_plain_file_is_not_opened(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    (tmp_path / "there").write_text("hunter2")
    if kind == "fifo":
        os.mkfifo(path)  # to open one for reading would wait for ever
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("there" if kind == "link" else "nowhere")
    for action in (read_own, append_own, lambda p: write_once(p, "new")):
        with pytest.raises(UserError, match=r"run\.dir: .* is a link or another thing that is not a plain file; remove it"):
            action(path)
    assert not (tmp_path / "nowhere").exists()
    assert json.dumps((tmp_path / "there").read_text()) == '"hunter2"'


@pytest.mark.parametrize(
    "file", sorted(str(f.relative_to(ROOT)) for room in ("lab", "processes") for f in (ROOT / "launch" / room).glob("*.py"))
)
def test_tools_write_into_their_folders_through_safe_files_alone(file: str) -> None:
    """Their folders have names that can be guessed, as RUN-branch beside a downloaded RUN: what lies there may be links."""
    text = (ROOT / file).read_text()
    assert not re.search(r"\.write_(text|bytes)\(|\.open\(\"[wa]", text.replace('Path(os.devnull).open("ab")', ""))


def test_the_log_of_a_job_replaces_a_link(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2")
    log = tmp_path / "trial.log"
    log.symlink_to("secret")
    assert run_jobs([Job("a", Command((sys.executable, "-c", "print(1)"), {}), log)], 1, lambda job, status: status == 0)
    assert (log.is_symlink(), log.read_text()) == (False, "1\n")
    assert (tmp_path / "secret").read_text() == "hunter2"


@pytest.mark.parametrize("swapped", ["logs", "logs/host"])
def test_a_folder_of_logs_that_is_swapped_for_a_link_after_the_check_takes_no_log_elsewhere(swapped: str, tmp_path: Path) -> None:
    """By whoever can write into the run folder; the run folder itself may be a link."""
    (tmp_path / "real").mkdir()
    run = tmp_path / "run"
    run.symlink_to("real")
    (run / "logs" / "host").mkdir(parents=True)
    for log in (run / "logs" / "rank-0.log", run / "logs" / "host" / "rank-0.log"):
        with append_log(log) as file:
            file.write(b"a line")
        assert log.read_bytes() == b"a line"
    check_folders(run, own_checkpoints=True)
    (run / swapped).rename(run / "before")
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "host").mkdir(parents=True)
    (run / swapped).symlink_to(elsewhere)
    log = run / "logs" / "host" / "rank-0.log"
    with pytest.raises(UserError, match="is a link"):
        append_log(log)
    code = (
        "import os, sys\nfrom harness.supervision.launch_env import Launched\n"
        "from harness.supervision.output_redirect import redirect\n"
        "redirect(Launched(os.getpid(), sys.argv[1], '/proc/none'), 0)\nprint('lost', flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(log.parent)], env=environ(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not [path for path in elsewhere.rglob("*") if path.is_file()]
