"""The commit that a folder is at, read from git's own files: no process is started for it."""

from pathlib import Path


def commit(folder: Path) -> str | None:
    """The hash of HEAD of the repository around `folder`, or None where there is none."""
    for place in (folder, *folder.parents):
        git = place / ".git"
        if git.is_file():  # a worktree: the file names the folder
            git = (place / git.read_text().removeprefix("gitdir:").strip()).resolve()
        if git.is_dir():
            return _head(git)
    return None


def _head(git: Path) -> str | None:
    head = (git / "HEAD").read_text().strip()
    if not head.startswith("ref: "):
        return head
    name, common = head.removeprefix("ref: "), git / "commondir"
    root = (git / common.read_text().strip()).resolve() if common.exists() else git
    if (root / name).is_file():
        return (root / name).read_text().strip()
    packed = root / "packed-refs"
    lines = packed.read_text().splitlines() if packed.is_file() else []
    return next((line.split()[0] for line in lines if line.endswith(f" {name}")), None)
