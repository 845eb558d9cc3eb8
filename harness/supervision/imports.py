"""Imports without garbage collection: what they make stays, and the collector would walk it again and again, a tenth of a start."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """No collection inside, and what is there at the end is never walked: torch and what it imports are 170,000 objects."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if on:
            gc.enable()
