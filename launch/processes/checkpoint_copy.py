"""The newest good checkpoint of a run, and a copy of it. No torch in here."""

import os
from collections.abc import Iterator
from pathlib import Path

from harness.checkpoint.manifest import EVALUATED, DamagedError, encode, seal
from harness.checkpoint.state_check import check_checkpoint, read_state
from harness.checkpoint.storage import BLOCK, LocalStore, Store, evaluated, open_store
from harness.checkpoint.verified import ODD, check_file, read_manifest
from harness.config.errors import UserError


def newest_good(place: str) -> tuple[str, list[str]]:
    """(the newest checkpoint at a path or URL of which everything verifies, empty if none does; what is wrong with newer ones).

    Raises UserError if the place cannot be read.
    """
    complaints = list[str]()
    try:
        store = open_store(place)
        for name in store.names():
            try:
                check_checkpoint(store, name)
            except DamagedError as e:
                complaints.append(f"{name}: {e}")
            else:
                return name, complaints
    except (ImportError, OSError, ValueError) as e:
        raise UserError("checkpoint.dir", f"{place!r} cannot be read: {e}", "look at that place") from e
    return "", complaints


def copy(place: str, name: str, into: Path) -> None:
    """The checkpoint `name` at a path or URL as one in the folder `into`, there whole or not at all.

    Only what its manifest names and what verifies is taken, by hard links where the disk allows it: a checkpoint is never written
    to. Raises UserError.
    """
    target = LocalStore(into)
    try:
        source = open_store(place)
        files, after = read_manifest(source, name), evaluated(source, name)
        read_state(source, name, files)
        target.sweep("")
        draft = target.begin(name, "copy")
        for file, digest in files.items():
            if not _linked(source, name, file, target.root / draft):
                target.append(draft, file, _blocks(source, name, file, digest.bytes))
            check_file(target, draft, file, digest)
        if after is not None:
            target.append(draft, EVALUATED, [seal(after)])
        target.commit(draft, name, encode(files))
    except (DamagedError, ImportError, *ODD) as e:
        target.sweep("")
        raise UserError("checkpoint.dir", f"{name} at {place} cannot be copied: {e}", "look at that place") from e


def _linked(source: Store, name: str, file: str, draft: Path) -> bool:
    """Whether a file could be linked into the folder `draft`."""
    if not isinstance(source, LocalStore):
        return False
    try:
        os.link(source.root / name / file, draft / file, follow_symlinks=False)
    except OSError:
        return False
    return True


def _blocks(store: Store, name: str, file: str, size: int) -> Iterator[bytes]:
    for first in range(0, size, BLOCK):
        yield store.read(name, file, first, min(first + BLOCK, size))
