"""Whether all nodes see the same run folder. Where each had its own, every checkpoint would be a part of one."""

import secrets
import socket
import time
from pathlib import Path

from harness.config.errors import UserError
from harness.distributed.process_group import agree, gather

PATIENCE_S = 30.0
"""How long a network file system may take to show a new file."""


def check_shared(folder: Path, rank: int) -> None:
    """All ranks together: rank 0 puts a file there, and the others look for it. Nothing of it stays.

    Raises UserError, on every rank, naming the first host that sees another folder under that name.
    """
    mark, new = folder / f".seen-{agree(secrets.token_hex(4))}", False
    if rank == 0:
        new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    agree("it is there")
    told = gather((socket.gethostname(), _sees(mark)))
    if rank == 0:
        mark.unlink()
        if new:
            folder.rmdir()
    for number, (host, seen) in enumerate(told):
        if not seen:
            at = f"{folder} on {told[0][0]} is not the folder that rank {number} sees on {host}"
            raise UserError("run.dir", at, "give one on a disk that all nodes share")


def _sees(mark: Path) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not mark.exists():
        if time.monotonic() > deadline:
            return False
        if mark.parent.is_dir():
            list(mark.parent.iterdir())  # makes a network file system ask its server again
        time.sleep(0.2)
    return True
