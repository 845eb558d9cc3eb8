"""Folders in the temporary folder: which processes they belong to, and their removal when those were killed.

A folder of ours holds a file that its processes keep locked (flock). The kernel ends the lock with the last of them, however that
ends, and knows no other: a process id that is used again, a process in another container or a run on another host that shares the
folder is never taken for a dead one. What belongs to another user, is a link, or can be opened by others is not looked into.
"""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing.util import get_temp_dir
from pathlib import Path

from harness.supervision.output_redirect import say

LOCK = ".widebatch-lock"
_MOST = 1 << 16
"""How many bytes of a lock file are read."""
_SHORT = "/tmp"  # noqa: S108  mkdtemp makes a folder there that only its user can open
_SOCKET, _SOCKET_MOST = "/pymp-01234567/listener-01234567", 107
"""What multiprocessing adds to the temporary folder's name, and the most bytes of a socket's name."""
_locks: dict[Path, int] = {}
"""Descriptors of the locks that this process holds; it ends with them."""


def own(folder: Path, beside: Iterable[Path] = ()) -> None:
    """Mark a folder as one of this process and of those it forks: the next start removes it when they were killed.

    `folder` is one that only its user can open, as tempfile makes them. Folders and sockets `beside` it go with it; nothing is
    written into them, for programs that remove theirs only when it is empty. Raises OSError.
    """
    if folder in _locks:
        return
    draft = folder / f"{LOCK}-{os.urandom(4).hex()}"
    _locks[folder] = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    fcntl.flock(_locks[folder], fcntl.LOCK_EX)
    os.write(_locks[folder], "\n".join(path.name for path in beside).encode())
    draft.replace(folder / LOCK)  # the lock file appears only once it is locked


@cache
def own_workers_folder() -> None:
    """Own the folder of multiprocessing (pymp-*), where the worker processes of this one have their sockets.

    Without it each worker would make one, and leave it where it is killed. It is made in /tmp, with a note, where the name of the
    temporary folder is too long for a socket's (Linux allows 107 bytes): batches are handed over by sockets.
    """
    usual = tempfile.gettempdir()
    if len(os.fsencode(usual)) + len(_SOCKET) > _SOCKET_MOST:
        say(f"note   {usual} (TMPDIR) is too long for the name of a socket: data workers have theirs in {_SHORT}")
        tempfile.tempdir = _SHORT
    try:
        own(Path(get_temp_dir()))
    except OSError as e:
        say(f"note   the temporary folder of data workers is not marked as this run's ({e})")
    finally:
        tempfile.tempdir = usual


@contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """A new folder in the temporary folder, removed at the end. Dead ones are removed first. Raises OSError."""
    remove_dead()
    with tempfile.TemporaryDirectory(prefix=prefix) as name:
        folder = Path(name)
        own(folder)
        try:
            yield folder
        finally:
            os.close(_locks.pop(folder))


def remove_dead() -> None:
    """Remove the folders whose processes are all gone. What cannot be removed is reported."""
    for folder in dict.fromkeys((tempfile.gettempdir(), _SHORT)):
        _remove_dead_in(folder)


def _remove_dead_in(folder: str) -> None:
    try:
        with os.scandir(folder) as entries:
            are_folders = {entry.path: entry.is_dir(follow_symlinks=False) for entry in entries}
    except OSError as e:
        say(f"note   the temporary folder cannot be read ({e})")
        return
    for name in (path for path, is_folder in are_folders.items() if is_folder):
        handle = _take_dead(name)
        if handle is None:
            continue
        beside = os.read(handle, _MOST).decode(errors="replace").split("\n")
        for path in (name, *(n for n in are_folders if Path(n).name in beside and _is_ours(n))):
            try:
                shutil.rmtree(path) if are_folders[path] else Path(path).unlink()
            except OSError as e:
                say(f"note   {path} was left by a run that was killed, and cannot be removed ({e})")
        os.close(handle)


def _is_ours(name: str) -> bool:
    """Whether this is our user's, and a socket or a folder that nobody else can open."""
    try:
        found = os.lstat(name)
    except OSError:
        return False
    private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
    return found.st_uid == os.geteuid() and (private or stat.S_ISSOCK(found.st_mode))


def _take_dead(name: str) -> int | None:
    """The lock of one of our folders, if no process holds it any more; else None."""
    handle = None
    try:
        if not _is_ours(name):
            return None
        handle = os.open(f"{name}/{LOCK}", os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # no folder of ours, held, or removed by another start just now
        if handle is not None:
            os.close(handle)
        return None
    return handle
