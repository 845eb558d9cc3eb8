"""The lock of a run folder. It has two parts: launcher and trainer; each is held by one process, and is released when that ends.

Record locks of the kernel (fcntl): a process that dies holds none, so no lock is ever stale, and children inherit none.
"""

import fcntl
import os
import socket
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Literal, final

from harness.config.errors import UserError
from harness.config.run_folder import LOCK
from harness.supervision.held import HeldFolder
from harness.supervision.safe_files import append_own, make_own

Seat = Literal["launcher", "trainer"]
SEATS: dict[Seat, int] = {"launcher": 0, "trainer": 1}
PATIENCE_S = 60.0
"""How long to wait for the ranks of a launcher that was killed: they save, then end."""


@final
class FolderLock:
    """Holds seats of a run folder, or a place of checkpoints, until `close` or the end of this process.

    The folder, which `setting` names, need not be there before the first `take`.
    """

    def __init__(self, folder: Path, setting: str = "run.dir") -> None:
        self._folder, self._setting = folder, setting
        self._file: BinaryIO | None = None
        self._held: HeldFolder | None = None

    @property
    def now(self) -> Path:
        """Where the folder is: as given, unless it was renamed since it was taken."""
        return self._folder if self._held is None else self._held.now

    def take(self, seat: Seat, what: str = "", patience_s: float = 0.0) -> None:
        """Take a seat, with `what` as the holder's name.

        Raises UserError, which names the holder, if another process keeps it longer than the wait.
        """
        make_own(self._folder, self._setting)
        file = self._file = self._file or self._open()
        deadline = time.monotonic() + patience_s
        while not _taken(file, seat):
            if time.monotonic() >= deadline:
                file.seek(0)
                at = f"{self._folder} is in use by {file.read(400).decode(errors='replace').strip() or 'another process'}"
                raise UserError(self._setting, at, f"wait for it, stop it, or give another {self._setting}")
            time.sleep(0.1)
        if what:
            since = f"{datetime.now():%Y-%m-%d %H:%M:%S}"
            with suppress(OSError):  # a full disk: the lock holds without a name
                file.truncate(0)
                file.write(f"{what}, process {os.getpid()} on {socket.gethostname()} since {since}\n".encode())

    def _open(self) -> BinaryIO:
        try:
            self._held = HeldFolder(self._folder)
            return append_own(self._folder / LOCK)
        except OSError as e:
            at = f"{self._folder} takes no lock ({e.strerror})"
            raise UserError(self._setting, at, f"make room there, or give another {self._setting}") from e

    def give(self, seat: Seat) -> None:
        """Release a seat."""
        if self._file is not None:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, SEATS[seat])

    def close(self) -> None:
        """Release all seats."""
        if self._file is not None:
            self._file.close()
        if self._held is not None:
            self._held.close()
            self._held = None


def _taken(file: BinaryIO, seat: Seat) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, SEATS[seat])
    except (BlockingIOError, PermissionError):
        return False
    return True
