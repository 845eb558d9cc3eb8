"""Disks that are full, broken or read-only, under whole runs: what cannot be written is said, tried again, and ends no training.

The disk of a run folder is a small tmpfs in a mount namespace of the run's own; a test fills it through /proc/PID/root.
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from harness.plan.guard_policy import GuardState
from harness.training.guard import REMEMBERED, _put_down
from harness.training.saves import Places
from tests.support.faults.checkpoints import save
from tests.support.faults.launching import Launch, run_file, wait_for
from tests.support.processes import LIMIT_S, ROOT, environ


def on_tmpfs(folder: Path, options: str) -> list[str]:
    """What to put before a command so that `folder` is a tmpfs of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    return ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o {options} none {folder} && exec "$@"', "sh"]


def fill(path: Path, block: int) -> None:
    """Append to a file until its disk takes no more."""
    with suppress(OSError), path.open("ab", buffering=0) as f:
        while True:
            f.write(b"\n" * block)


def test_a_run_on_a_full_disk_goes_on_and_starts_again_while_its_checkpoints_have_a_place(tmp_path: Path) -> None:
    kept = {"dir": str(tmp_path / "kept")}
    path = run_file(tmp_path, epochs=10_000, checkpoint=kept, restart={"budget": 3})
    launch = Launch(path, before=on_tmpfs(tmp_path / "run", "size=1m"))
    try:
        launch.at_step(4)
        disk = Path(f"/proc/{launch.process.pid}/root{tmp_path}/run")
        filler = disk / "filler"
        fill(filler, 4096)
        fill(disk / "logs" / "rank-0.log", 1)  # to the end of the page that it has
        pids = launch.at_step(8)
        os.kill(pids[1], signal.SIGKILL)
        wait_for(lambda: "restart 1 of 3" in launch.text(), "restart")
        wait_for(lambda: launch.at_step(12)[1] != pids[1], "ranks that train again")
        filler.unlink()
        launch.at_step(launch.beat(0).step + 8)  # type: ignore[union-attr]
        journal = (disk / "events.jsonl").read_text()
        launch.process.terminate()
        assert launch.wait() == 75, launch.text()
    finally:
        launch.end()
    told = launch.text()
    assert "Traceback" not in told
    assert told.count("run.yaml cannot be written, so it keeps the content of an earlier start (No space left on device)") == 1
    assert told.count("rank-0.log is not written (No space left on device); training continues") == 1
    assert "rank-0.log lacks " in told
    assert '"code":"restarted"' in journal.replace(" ", ""), "what waited is written once there is room"
    assert list((tmp_path / "kept").glob("samples-*"))


@pytest.mark.parametrize("options", ["ro", "nr_inodes=1"])
@pytest.mark.parametrize("command", [["train"], ["launch", "--gpus", "0", "--procs", "2"]])
def test_a_run_folder_that_takes_no_file_is_one_line_and_status_2(tmp_path: Path, options: str, command: list[str]) -> None:
    argv = [*on_tmpfs(tmp_path / "run", options), sys.executable, "-m", "launch", command[0], str(run_file(tmp_path)), *command[1:]]
    done = subprocess.run(argv, cwd=tmp_path, env=environ(), capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 2, done.stderr
    why = {"ro": "Read-only file system", "nr_inodes=1": "No space left on device"}[options]
    said = [line for line in done.stderr.splitlines() if not line.startswith("note: recipe.samples is not stated")]
    at = f"{tmp_path}/run takes no lock ({why})"
    assert said == [f"error: run.dir: {at}; make room there, or give another run.dir"]


@pytest.mark.parametrize("rank", [0, 1])
def test_what_a_rank_prints_on_a_full_disk_is_counted_and_no_error(tmp_path: Path, rank: int) -> None:
    code = (
        "import os, resource, sys\nfrom pathlib import Path\nfrom harness.supervision.launch_env import Launched\n"
        "from harness.supervision.output_redirect import redirect\n"
        "redirect(Launched(os.getpid(), sys.argv[1], sys.argv[1] + '/gone/nobody'), int(sys.argv[2]))\n"
        "print('before')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (7, resource.RLIM_INFINITY))\n"
        "for _ in range(3):\n    print('lost')\n    print('lost', file=sys.stderr)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "print('after')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), str(rank)], cwd=ROOT, env=environ(), check=False)
    assert done.returncode == 0
    text = (tmp_path / f"rank-{rank}.log").read_text()
    assert text == "before\n\n[15 bytes of output could not be written here]\nafter\n"


def test_a_roll_back_that_cannot_be_written_down_says_so(tmp_path: Path) -> None:
    place = tmp_path / "checkpoints"
    for samples in (64, 128):
        save(str(place), samples)
    (place / ".samples-000000000128.drop").mkdir()  # in the way of what is to be removed
    (place / ".samples-000000000128.drop" / "file").touch()
    problems = _put_down(Places(tmp_path / "gone", str(place)), "samples-000000000064", GuardState())
    undone = "a restart before the next checkpoint would undo the roll-back"
    assert problems == [
        f"checkpoints newer than samples-000000000064 cannot be removed (Directory not empty): {undone}",
        f"{REMEMBERED} cannot be written (No such file or directory): {undone}",
    ]
    assert _put_down(Places(tmp_path, str(place)), "samples-000000000128", GuardState()) == []
    assert (tmp_path / REMEMBERED).is_file()
    assert not (tmp_path / "gone").exists()
