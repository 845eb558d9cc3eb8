"""Large blocks between memory and a disk, past the kernel's cache: no copy, and nothing that others want is displaced.

A disk takes whole pages, from addresses and to places that are multiples of a page. What does not fit goes through the cache, as
does everything where the file system knows no other way.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

PAGE, LARGE = 4096, 1 << 20
"""Bytes of a page; from which on a block is worth it."""
_DIRECT = getattr(os, "O_DIRECT", 0)


def write(handle: int, block: memoryview, at: int) -> memoryview:
    """Write what of a block can go to byte `at` of a file this way; what is left. Raises OSError as os.write does."""
    whole = block[: len(block) // PAGE * PAGE]
    with _direct(handle, whole, at) as possible:
        try:
            return block[os.write(handle, whole) :] if possible else block
        except OSError as e:
            if e.errno != errno.EINVAL:
                raise
            return block


def read(handle: int, out: memoryview, at: int) -> int:
    """Fill `out` this way with what lies at byte `at` of a file; the bytes that were read, 0 where it cannot be."""
    with _direct(handle, out, at) as possible:
        try:
            return os.preadv(handle, [out], at) if possible else 0
        except OSError:
            return 0  # an error of the disk comes again, where the rest is read


@contextmanager
def _direct(handle: int, block: memoryview, at: int) -> Iterator[bool]:
    """Whether reads and writes of the block go past the cache within."""
    flags = fcntl.fcntl(handle, fcntl.F_GETFL)
    possible = bool(_DIRECT) and len(block) >= LARGE and not len(block) % PAGE and not at % PAGE
    if possible:
        try:
            fcntl.fcntl(handle, fcntl.F_SETFL, flags | _DIRECT)
        except OSError:
            possible = False
    try:
        yield possible
    finally:
        fcntl.fcntl(handle, fcntl.F_SETFL, flags)
