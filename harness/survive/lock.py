"""The lock of a run folder. Two seats: who launches, and who trains; each is held by one process, and falls free when it is gone.

Record locks of the kernel (fcntl): a process that dies holds none, so no lock is ever stale, and children inherit none.
"""

import fcntl
import os
import socket
import time
from datetime import datetime
from pathlib import Path
from typing import IO, Literal, final

from harness.plan.errors import UserError

Seat = Literal["launcher", "trainer"]
SEATS: dict[Seat, int] = {"launcher": 0, "trainer": 1}
NAME = "lock"
PATIENCE_S = 60.0
"""How long the ranks of a launcher that was killed are waited for: they save, and go."""


@final
class FolderLock:
    """Holds seats of a run folder, which need not be there before the first `take`, until `close` or the end of this process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[str] | None = None

    def take(self, seat: Seat, what: str = "", patience_s: float = 0.0) -> None:
        """Take a seat, and write down as `what`. Raises UserError, which names the holder, where another keeps it so long."""
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._file = self._file or (self._folder / NAME).open("a+")
        deadline = time.monotonic() + patience_s
        while not _taken(file, seat):
            if time.monotonic() >= deadline:
                file.seek(0)
                at = f"{self._folder} is in use by {file.read().strip() or 'another process'}"
                raise UserError("run.dir", at, "wait for it, stop it, or give another run.dir")
            time.sleep(0.1)
        if what:
            file.truncate(0)
            file.write(f"{what}, process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M:%S}\n")
            file.flush()

    def give(self, seat: Seat) -> None:
        """Leave a seat that was taken."""
        if self._file is not None:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, SEATS[seat])

    def close(self) -> None:
        """Leave all seats."""
        if self._file is not None:
            self._file.close()


def _taken(file: IO[str], seat: Seat) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, SEATS[seat])
    except (BlockingIOError, PermissionError):
        return False
    return True
