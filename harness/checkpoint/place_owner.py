"""Whose the checkpoints at a place are: a run in another folder neither continues nor deletes them.

A place outside the run folder has a mark that names the folder of its run and the random text that the folder keeps. The run may
be renamed, or its folder be made again under its path (as on a machine that keeps none): it is the same run.
"""

import json
import secrets
from pathlib import Path
from typing import Any

from harness.checkpoint.manifest import MANIFEST, place_of
from harness.checkpoint.storage import LocalStore, ShortReadError, Store
from harness.config.errors import UserError
from harness.config.run_folder import RunFolder
from harness.supervision.output_redirect import say
from harness.supervision.safe_files import read_own, write_once

MARK = "owner.json"
_LONGEST = 16384


def own_id(folder: Path) -> str:
    """What tells this run folder from all others: a random text that is kept in it."""
    folder.mkdir(parents=True, exist_ok=True)
    return write_once(RunFolder(folder).owner, secrets.token_hex(16))


def is_own(place: Path, folder: Path) -> bool:
    """Whether a place of checkpoints is the one inside the run folder."""
    return place.resolve() == RunFolder(folder.resolve()).own_checkpoints


def take_over(store: Store, where: str, folder: Path) -> None:
    """Mark the place as that of the run in `folder`. Raises UserError if checkpoints of a run in another folder lie there."""
    here, mine = folder.resolve(), own_id(folder)
    around = _around(store)
    owner = around or _marked(store)
    if owner is not None and not _same(owner, here, mine) and (around or store.names()):
        at = f"{where} holds the checkpoints of the run in {owner['folder']}, and run.dir is {here}"
        remedy = f"give another checkpoint.dir, or --run.dir {owner['folder']} to continue that run"
        raise UserError("checkpoint.dir", at, f"{remedy}; `widebatch branch` starts from its weights")
    mark = {"folder": str(here), "id": mine}
    if owner != mark:
        try:
            store.replace(MARK, json.dumps(mark).encode())
        except OSError as e:
            say(f"warn: {where}: that it belongs to {here} could not be written there ({e})")


def _same(owner: dict[str, str], here: Path, mine: str) -> bool:
    """Whether the run that a mark names is the one in the folder `here`: not where this is a copy of that."""
    if owner["folder"] == str(here):
        return True
    try:
        there = read_own(RunFolder(Path(owner["folder"])).owner)
    except (OSError, UserError, ValueError):
        there = None
    return owner["id"] == mine != there


def _marked(store: Store) -> dict[str, str] | None:
    """The mark of a place; None if it has none, or one that nobody can read."""
    size = store.size("", MARK)
    if size is None or size > _LONGEST:
        return None
    try:
        found: Any = json.loads(store.read("", MARK, 0, size))
    except (ValueError, RecursionError, FileNotFoundError, ShortReadError):  # the last two while it is written
        return None
    if not isinstance(found, dict) or not all(isinstance(found.get(key), str) and found[key] for key in ("folder", "id")):
        return None
    return {"folder": found["folder"], "id": found["id"]} if found["folder"].isprintable() else None


def _around(store: Store) -> dict[str, str] | None:
    """The run among whose checkpoints, in its folder, a place lies: at any depth, as the run deletes old ones whole."""
    for place in _with_parents(store):
        around = RunFolder(place.parent)
        if around.own_checkpoints == place and around.journal.is_file():
            return {"folder": str(around.path), "id": ""}
    return None


def _with_parents(store: Store) -> list[Path]:
    """A place on this machine and the folders that it lies in; none of a store elsewhere."""
    root = store.root.resolve() if isinstance(store, LocalStore) else None
    return [] if root is None else [root, *root.parents]


def check_no_checkpoint(store: Store, where: str) -> None:
    """Raise UserError where a place is a checkpoint, or lies in one: it would be deleted with that."""
    inside = any(place_of(place.name) and (place / MANIFEST).is_file() for place in _with_parents(store))
    if inside or (not isinstance(store, LocalStore) and store.size("", MANIFEST) is not None):
        remedy = "give a folder without checkpoints; to begin with a checkpoint's weights, use init_from"
        raise UserError("checkpoint.dir", f"{where} lies in a checkpoint, which its run deletes when it is old", remedy)
