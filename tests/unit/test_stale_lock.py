"""Locks go by what the kernel holds, never by a process id in a file: one may be used again, or be of another pid namespace."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.config.errors import UserError
from harness.supervision.run_lock import FolderLock
from tests.support.processes import ROOT

HOLDER = """
import sys
from pathlib import Path
from harness.supervision.run_lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
lock.take("launcher", "a run")
print("held", flush=True)
sys.stdin.read()
"""
ALONE = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
"""Runs a command in a pid namespace of its own, in which it is process 1."""


@pytest.mark.parametrize("pid", [1, os.getpid(), os.getppid()], ids=["init", "own", "parent"])
def test_a_lock_whose_process_id_belongs_to_another_process_now_is_free(pid: int, tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(f"widebatch launch, process {pid} on {os.uname().nodename} since 2026-01-01 00:00:00\n")
    lock = FolderLock(tmp_path)
    lock.take("launcher", "a run")
    assert f"a run, process {os.getpid()} on " in (tmp_path / "lock").read_text()
    lock.close()


def test_a_holder_in_another_pid_namespace_holds_and_is_free_when_killed(tmp_path: Path) -> None:
    if subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine gives no pid namespace")
    argv = [*ALONE, sys.executable, "-c", HOLDER, str(tmp_path)]
    lock = FolderLock(tmp_path)
    with subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=r"is in use by a run, process 1 on "):  # our process 1 is another
            lock.take("launcher", "a run")
        holder.kill()
        holder.wait()
        lock.take("launcher", "a run", patience_s=600)
    assert f"a run, process {os.getpid()} on " in (tmp_path / "lock").read_text()
    lock.close()
