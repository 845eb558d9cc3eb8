"""A fault at the n-th system call by which a writer changes a disk: it is killed there, or the disk is full. For tests alone.

`install` puts itself before the calls of `os`. A child gets it through `site`, beside this file, and the variable FAULT:
"kill:17", "full:3", "full:3:1" (on rank 1 alone), "flush:1" (the disk makes nothing durable), "rename:1" (no rename is possible),
"drop:1" (nothing can be deleted), or "limit:600" (no file may be longer, by the kernel's own RLIMIT_FSIZE). Where FAULT_ONCE names
a file, the first writer alone has the fault.
"""

import errno
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

CALLS = ("mkdir", "open", "write", "fsync", "rename", "unlink", "rmdir")
"""Those by which a save changes a disk."""


def install(kind: str, at: int) -> list[str]:
    """From now on: do `kind` (kill, full, ...) at call number `at`, 1 the first; the calls so far, in order."""
    made: list[str] = []

    def faulty(name: str, real: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            if name == "open" and not args[1] & (os.O_WRONLY | os.O_RDWR):
                return real(*args, **options)
            made.append(name)
            if kind == "kill" and len(made) == at:
                if name == "write":
                    real(args[0], bytes(args[1])[: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "full" and len(made) >= at and name in ("mkdir", "open", "write"):
                raise OSError(errno.ENOSPC, "No space left on device")
            if kind == "flush" and name == "fsync":
                raise OSError(errno.EIO, "Input/output error")
            if name == "rename" and (kind == "rename" or (kind == "drop" and str(args[1]).endswith(".drop"))):
                raise OSError(errno.EXDEV, "Invalid cross-device link")
            return real(*args, **options)

        return call

    for name in CALLS:
        setattr(os, name, faulty(name, getattr(os, name)))
    return made


def from_environment() -> None:
    """In a writer: the fault that the variable FAULT asks for."""
    kind, _, rest = os.environ.get("FAULT", "").partition(":")
    at, _, rank = rest.partition(":")
    if "harness.checkpoint.writer_process" not in sys.orig_argv or not kind or (rank and rank != os.environ.get("RANK")):
        return
    once = os.environ.get("FAULT_ONCE")
    if once:  # the first writer only: the next one is a good one
        try:
            Path(once).touch(exist_ok=False)
        except FileExistsError:
            return
    if kind == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(at), int(at)))
        return
    real = os.write
    install(kind, int(at))
    os.write, faulty = real, os.write

    def write(handle: int, data: Any) -> int:
        """What goes to its rank is not a part of a save."""
        return real(handle, data) if handle == 1 else faulty(handle, data)

    os.write = write
