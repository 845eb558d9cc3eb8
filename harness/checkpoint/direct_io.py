"""Large blocks between memory and a disk, without the kernel's page cache (O_DIRECT): no copy, and no other file is evicted.

A disk takes whole pages at addresses and offsets that are multiples of a page. The rest goes through the cache, as does everything
where the file system does not support this.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

PAGE, LARGE = 4096, 1 << 20
"""Bytes of a page; bytes from which on a block is written this way."""
_DIRECT = getattr(os, "O_DIRECT", 0)


def write(handle: int, block: memoryview, at: int) -> memoryview:
    """Write the part of a block that can be written this way to byte `at` of a file; returns the rest.

    Raises OSError as os.write does.
    """
    whole = block[: len(block) // PAGE * PAGE]
    with _direct(handle, whole, at) as possible:
        try:
            return block[os.write(handle, whole) :] if possible else block
        except OSError as e:
            if e.errno != errno.EINVAL:
                raise
            return block


def read(handle: int, out: memoryview, at: int) -> int:
    """Fill `out` this way from byte `at` of a file; returns the bytes that were read, 0 where it is not possible."""
    with _direct(handle, out, at) as possible:
        try:
            return os.preadv(handle, [out], at) if possible else 0
        except OSError:
            return 0  # an error of the disk appears again where the rest is read


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
