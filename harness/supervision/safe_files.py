"""Small files in a run folder: links are never followed, and a file is there whole or not at all.

A run folder may come from somebody else, or lie where others can write: a link in it must neither make us overwrite a file
elsewhere nor show what is in one. A UserError says so; what else fails raises OSError.
"""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from harness.config.errors import UserError
from harness.config.run_folder import RunFolder
from harness.supervision.log_file import open_log
from harness.supervision.output_redirect import say

TRACKERS = ("tensorboard", "mlflow", "trackio")
"""Trackers whose files lie in the run folder."""
_LARGEST = 16 << 20


def make_own(folder: Path, setting: str = "run.dir") -> None:
    """Make a folder where there is none. Raises UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(setting, f"{folder} cannot be made ({e.strerror})", f"make room there, or give another {setting}") from e


def refuse_link(folder: Path, setting: str = "run.dir") -> None:
    """Raise UserError where a link takes the place of a folder inside the one that `setting` names: it leads elsewhere."""
    if folder.is_symlink():
        raise _stranger(folder, setting, "folder")


def make_inside(folder: Path, setting: str = "run.dir") -> None:
    """Make a folder inside the one that `setting` names, where there is none. A link in its place raises UserError."""
    refuse_link(folder, setting)
    make_own(folder, setting)


def check_folders(folder: Path, *, own_checkpoints: bool) -> None:
    """Raise UserError where links in a run folder take the place of folders that a run writes into.

    `own_checkpoints`: the checkpoints lie in it.
    """
    run = RunFolder(folder)
    for path in (run.logs, run.ranks, run.wandb, *map(run.tracker, TRACKERS), *([run.own_checkpoints] if own_checkpoints else [])):
        refuse_link(path)
    for path in run.logs.iterdir() if run.logs.is_dir() else ():
        refuse_link(path)


def read_own(path: Path) -> str | None:
    """The text of a plain file of at most 16 MiB, None if there is none."""
    try:
        handle = _open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with os.fdopen(handle, "rb") as file:
        text = file.read(_LARGEST + 1)
    if len(text) > _LARGEST:
        raise OSError(errno.EFBIG, f"more than {_LARGEST:,} bytes", str(path))
    return text.decode(errors="replace")


def append_own(path: Path) -> BinaryIO:
    """A file to read and to append to, unbuffered, created if missing."""
    return os.fdopen(_open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT), "ab+", buffering=0)


def open_own(path: Path) -> int:
    """The descriptor of a file to write into at any place, created if missing."""
    return _open(path, os.O_RDWR | os.O_CREAT)


def append_log(path: Path) -> BinaryIO:
    """As `append_own`, for a log (log_file.py): links in the place of its folders are not followed either."""
    return os.fdopen(_open(path, os.O_RDWR | os.O_APPEND, open_log), "ab+", buffering=0)


def write_own(path: Path, text: str | bytes) -> None:
    """Write a file whole, in the place of what has its name. A link of that name is replaced; what it leads to stays as it is."""
    draft = _draft(path, text)
    try:
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def renew_own(path: Path, text: str) -> None:
    """Write a file of a run that starts. If the disk cannot take it, that of an earlier start stays, with a warning.

    Raises UserError if there is no earlier one.
    """
    try:
        write_own(path, text)
    except OSError as e:
        if not path.is_file():
            at = f"{path} cannot be written ({e.strerror})"
            raise UserError("run.dir", at, "make room there, or give another run.dir") from e
        say(f"warn   {path} cannot be written, so it keeps the content of an earlier start ({e.strerror})")


def write_once(path: Path, text: str) -> str:
    """Write a file whole unless there is one; what it then holds. Of several processes that do so at once, one wins."""
    found = read_own(path)
    if found is not None:  # a full disk takes no draft
        return found
    draft = _draft(path, text)
    try:
        os.link(draft, path, follow_symlinks=False)
    except FileExistsError:
        return read_own(path) or ""
    finally:
        draft.unlink(missing_ok=True)
    return text


def _open_file(path: Path, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o644)


def _open(path: Path, flags: int, opener: Callable[[Path, int], int] = _open_file) -> int:
    try:
        handle = opener(path, flags | os.O_NONBLOCK)
    except OSError as e:
        if e.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise _stranger(path) from e
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _stranger(path)
    return handle


def _stranger(path: Path, setting: str = "run.dir", what: str = "plain file") -> UserError:
    return UserError(setting, f"{path} is a link or another thing that is not a {what}", f"remove it, or give another {setting}")


def _draft(path: Path, text: str | bytes) -> Path:
    """The text in a new file beside `path`, under a name that cannot be guessed."""
    draft = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape"))
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    return draft
