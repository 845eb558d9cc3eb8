"""One run at a time at a place of checkpoints, and one owner: a lock where it is a folder, a lease where it is an object store.

A store has no locks, so its lease is a small file that the run rewrites every RENEW_S. One that is not rewritten for STALE_S was
left by a run that was killed, and is taken over; that of the same run folder is taken over at once, as the folder has a lock.
No clock is compared between machines. Who may continue what lies there is place_owner.py's.
"""

import json
import secrets
import socket
import threading
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, final

from harness.checkpoint.place_owner import check_no_checkpoint, is_own, own_id, take_over
from harness.checkpoint.reader import store_at
from harness.checkpoint.storage import LocalStore, ShortReadError, Store
from harness.config.errors import UserError
from harness.supervision.output_redirect import say
from harness.supervision.run_lock import FolderLock

LEASE = "lease.json"
RENEW_S, STALE_S = 20.0, 90.0
REMEDY = "wait for it, stop it, or give another checkpoint.dir"


class PlaceLock(ABC):
    """Held until `close`, or until this process is gone."""

    @abstractmethod
    def close(self) -> None:
        """Give the place free for other runs."""


@final
class _FolderPlace(PlaceLock):
    def __init__(self, store: LocalStore, folder: Path) -> None:
        own = is_own(store.root, folder)
        self._lock = FolderLock(store.root, "run.dir" if own else "checkpoint.dir")
        try:
            self._lock.take("trainer", "a run")
            if not own:
                take_over(store, str(store.root), folder)
        except (UserError, OSError):
            self._lock.close()
            raise

    def close(self) -> None:
        self._lock.close()


UNREADABLE: dict[str, Any] = {"host": "an unknown host", "holder": "unknown"}
"""Stands for a lease that cannot be parsed, or that its holder is rewriting at this moment."""


@final
class _StorePlace(PlaceLock):
    """The lease of a store, renewed by a thread."""

    def __init__(self, store: Store, where: str, folder: Path) -> None:
        self._store, self._where = store, where
        self._mine = {"owner": own_id(folder), "holder": secrets.token_hex(8), "host": socket.gethostname()}
        self._beat = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease of checkpoint.dir", daemon=True)
        self._await()
        take_over(store, where, folder)
        self._write()
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
        try:
            if self._read().get("holder") == self._mine["holder"]:
                self._store.remove("", LEASE)
        except OSError as e:
            _say(f"{self._where}: the lease could not be given back ({e}); it is stale in {STALE_S:g} s")

    def _await(self) -> None:
        """Wait until the lease is free, or shown to be stale. Raises UserError if another run renews it."""
        first = self._read()
        if not first or first.get("owner") == self._mine["owner"]:
            return
        _say(f"{self._where} has a lease of a run on {first.get('host')}: waiting {STALE_S:g} s to see whether that run is alive")
        deadline = time.monotonic() + STALE_S
        while time.monotonic() < deadline:
            time.sleep(min(RENEW_S / 4, STALE_S / 4))
            found = self._read()
            if not found:
                return
            if found != first:
                at = f"{self._where} is in use by a run on {(first if found == UNREADABLE else found).get('host')}"
                raise UserError("checkpoint.dir", at, REMEDY)

    def _renew(self) -> None:
        """Rewrite the lease until it is closed; say once where that fails, or where another run has taken it."""
        failed = False
        while not self._closed.wait(RENEW_S):
            try:
                if (holder := self._read().get("holder")) not in (None, self._mine["holder"]):
                    _say(f"{self._where}: another run ({holder}) has taken the lease; this run deletes only its own checkpoints")
                    return
                self._write()
                failed = False
            except OSError as e:
                if not failed:
                    _say(f"{self._where}: the lease could not be renewed ({e}); trying again")
                failed = True

    def _read(self) -> dict[str, Any]:
        size = self._store.size("", LEASE)
        if size is None:
            return {}
        try:
            found = json.loads(self._store.read("", LEASE, 0, min(size, 4096)))
        except (ValueError, RecursionError, FileNotFoundError, ShortReadError):  # the last two: its holder is writing it
            return UNREADABLE
        return found if isinstance(found, dict) else UNREADABLE

    def _write(self) -> None:
        self._beat += 1
        self._store.replace(LEASE, json.dumps(self._mine | {"beat": self._beat}).encode())


def hold(where: str, folder: Path) -> PlaceLock:
    """Take the place of checkpoints `where` for the run in `folder`.

    Raises UserError, which names the run that holds it, or the one in another folder whose checkpoints lie there.
    """
    store = store_at(where)
    try:
        check_no_checkpoint(store, where)
        return _FolderPlace(store, folder) if isinstance(store, LocalStore) else _StorePlace(store, where, folder)
    except OSError as e:
        raise UserError("checkpoint.dir", f"{where!r} cannot be used: {e}", "give a place where files can be written") from e


def _say(text: str) -> None:
    say(f"warn: {text}")
