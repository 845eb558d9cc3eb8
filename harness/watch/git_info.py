"""The commit that a folder is at, and whether files differ from it.

The commit is read from git's own files, which are not ours: only what has the form of a commit's hash is ever returned, and a
reference leads nowhere but into `refs/`. Differences are for git to find; no hook or monitor of the repository is run for it.
"""

import re
import subprocess
from pathlib import Path

_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REF = re.compile(r"refs/(?!.*(\.\.|//|/\.|\.lock$|\.$))[\w][\w./@+=-]*")
GIT_S = 10.0
_LARGEST = 8 << 20
"""Bytes of a file that is read: a `packed-refs` of 100,000 references."""


def commit(folder: Path) -> str | None:
    """The hash of HEAD of the repository around `folder`, or None if there is none, or where it has another form."""
    try:
        for place in (folder, *folder.parents):
            git = place / ".git"
            if git.is_file():  # a worktree or submodule: the file names the folder
                git = (place / _text(git).removeprefix("gitdir:").strip()).resolve()
            if git.is_dir():
                return _head(git)
    except (OSError, ValueError):  # unreadable, a loop of links, not text, an embedded null byte
        return None
    return None


def uncommitted_changes(folder: Path) -> bool | None:
    """Whether tracked files differ from the commit; None if git cannot say, or takes longer than GIT_S."""
    safe = ["-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "--no-optional-locks"]
    argv = ["git", *safe, "status", "--porcelain", "--untracked-files=no"]
    try:
        done = subprocess.run(argv, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=GIT_S, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    return bool(done.stdout) if done.returncode == 0 else None


def _head(git: Path) -> str | None:
    head = _text(git / "HEAD").strip()
    if not head.startswith("ref: "):
        return _checked(head)
    name, common = head.removeprefix("ref: "), git / "commondir"
    if not _REF.fullmatch(name):
        return None
    root = (git / _text(common).strip()).resolve() if common.is_file() else git
    if (root / name).is_file():
        return _checked(_text(root / name).strip())
    packed = root / "packed-refs"
    lines = _text(packed).splitlines() if packed.is_file() else []
    return next((_checked(line.split(" ", 1)[0]) for line in lines if line.endswith(f" {name}")), None)


def _checked(text: str) -> str | None:
    return text if _HASH.fullmatch(text) else None


def _text(path: Path) -> str:
    """A small text file. Raises OSError or ValueError."""
    with path.open("rb") as file:
        return file.read(_LARGEST).decode()
