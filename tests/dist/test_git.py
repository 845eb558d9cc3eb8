"""The commit in W&B's record: a hash or nothing, whatever lies in the files of a folder named .git."""

import subprocess
from pathlib import Path

import pytest

from harness.watch.git_info import commit, uncommitted_changes
from tests.support.processes import ROOT

HASH = "0123456789abcdef0123456789abcdef01234567"


def repository(folder: Path, head: str | bytes, files: dict[str, str] | None = None) -> Path:
    git = folder / ".git"
    git.mkdir(parents=True)
    (git / "HEAD").write_bytes(head if isinstance(head, bytes) else head.encode())
    for name, text in (files or {}).items():
        (git / name).parent.mkdir(parents=True, exist_ok=True)
        (git / name).write_text(text)
    return folder


def test_it_is_what_git_says() -> None:
    asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert commit(ROOT / "tests") == asked.stdout.strip()


@pytest.mark.parametrize(
    ("head", "files"),
    [
        (f"{HASH}\n", {}),
        ("ref: refs/heads/main\n", {"refs/heads/main": f"{HASH}\n"}),
        ("ref: refs/heads/a/b-c.d\n", {"refs/heads/a/b-c.d": HASH}),
        ("ref: refs/heads/main\n", {"packed-refs": f"# pack-refs with: peeled\n{HASH} refs/heads/main\n^{HASH}\n"}),
    ],
)
def test_a_hash_is_found(head: str, files: dict[str, str], tmp_path: Path) -> None:
    assert commit(repository(tmp_path, head, files)) == HASH


@pytest.mark.parametrize(
    "head",
    ["", "\n", "ref: ", "ref: ../../secret", "ref: refs/../../secret", "ref: /etc/passwd", "ref: refs/heads/none", "a secret",
     HASH[:39],
     HASH.upper(), f"{HASH} x", "ref: refs/heads/x\x00y", b"\xff\xfe", b"ref: refs/\xff", "ref: refs/heads/secret", "ref: secret"],
)  # fmt: skip
def test_no_other_text_is_ever_told(head: str | bytes, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2")
    assert commit(repository(tmp_path / "a" / "b", head, {"refs/heads/secret": "hunter2", "secret": HASH})) is None


def test_an_empty_git_a_loop_and_a_file_that_leads_nowhere_are_no_repository(tmp_path: Path) -> None:
    (tmp_path / "empty" / ".git").mkdir(parents=True)
    assert commit(tmp_path / "empty") is None
    loop = repository(tmp_path / "loop", "ref: refs/heads/a")
    (loop / ".git" / "refs").mkdir()
    (loop / ".git" / "refs" / "heads").symlink_to(loop / ".git" / "refs" / "heads")
    assert commit(loop) is None
    (tmp_path / "file").mkdir()
    for text in ("", "gitdir: nowhere", "gitdir: \x00", "x" * 5000):
        (tmp_path / "file" / ".git").write_text(text)
        assert commit(tmp_path / "file") in (None, commit(tmp_path))


def test_whether_files_differ_from_the_commit_is_what_git_says_and_runs_nothing_of_the_repository(tmp_path: Path) -> None:
    def git(*argv: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *who, *argv], cwd=tmp_path / "r", check=True, capture_output=True)

    (tmp_path / "r").mkdir()
    assert uncommitted_changes(tmp_path / "r") is None, "no repository"
    git("init")
    (tmp_path / "r" / "file").write_text("one")
    git("add", "file")
    git("commit", "-m", "first")
    git("config", "core.fsmonitor", f"touch {tmp_path}/ran; false")
    (tmp_path / "r" / "new").write_text("as results are")
    assert uncommitted_changes(tmp_path / "r") is False
    (tmp_path / "r" / "file").write_text("two")
    assert uncommitted_changes(tmp_path / "r") is True
    assert not (tmp_path / "ran").exists()
