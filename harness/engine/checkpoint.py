"""Checkpoints on disk: a folder with safetensors and JSON, committed by one rename, verified before it is used.

    checkpoints/samples-000000012800/
        tensors-0002-of-0004.safetensors   what rank 2 of 4 held of weights and optimizer state, as pieces
        state.json                         where the run stands, and the plan it stood under
        manifest.json                      size and xxh3_128 digest of each file above

Nothing here unpickles. Any number of ranks of any backend reads the pieces it needs (harness/engine/pieces.py).
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from harness.engine.pieces import Part, Piece, Source, slicer
from harness.engine.state import State

STATE, MANIFEST = "state.json", "manifest.json"
_NAME = re.compile(r"samples-\d{12}")
_TENSORS = re.compile(r"tensors-\d{4,}-of-\d{4,}\.safetensors")
Digest = dict[str, Any]
"""Size and xxh3_128 digest of a file."""


class DamagedError(Exception):
    """A checkpoint that must not be used; the text says why."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint. `about` holds the facts of the run it was saved by: plan and data set size."""

    path: Path
    state: State
    about: dict[str, Any]
    tensors: Source


def prepare(folder: Path, state: State) -> Path:
    """An empty temporary folder for a checkpoint; one rank makes it, the others write into it. Raises OSError."""
    temporary = folder / f".{_name(state)}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def write_part(temporary: Path, rank: int, ranks: int, pieces: Iterable[Piece]) -> dict[str, Digest]:
    """Write and flush this rank's pieces; the digest of the file by its name. Raises OSError."""
    held = list(pieces)
    path = temporary / f"tensors-{rank:04d}-of-{ranks:04d}.safetensors"
    shapes = {"shapes": json.dumps({p.name: p.shape for p in held})}
    save_file({f"{p.start}:{p.name}": p.data.cpu().clone() for p in held}, path, metadata=shapes)
    _flush(path)
    return {path.name: _digest(path)}


def commit(folder: Path, state: State, about: Mapping[str, Any], digests: Mapping[str, Digest], keep: int) -> Path:
    """When all ranks have written: add state and manifest, rename, then drop all but the newest `keep`. Raises OSError."""
    final, temporary = folder / _name(state), folder / f".{_name(state)}.tmp"
    (temporary / STATE).write_text(json.dumps({"state": state.to_json(), "about": dict(about)}, indent=1))
    manifest = {**digests, STATE: _digest(temporary / STATE)}
    (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for name in (STATE, MANIFEST):
        _flush(temporary / name)
    _flush(temporary)
    if final.exists():
        shutil.rmtree(final)
    temporary.rename(final)
    _flush(folder)
    well = newest_well(folder)
    for old in list(_newest_first(folder))[keep:]:
        if well is None or old != well.path:  # the guard may want to go back to it
            shutil.rmtree(old)
    return final


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, or None where there is none at all; and what was wrong with newer ones."""
    complaints: list[str] = []
    for path in _newest_first(folder):
        try:
            return load(path), complaints
        except DamagedError as e:
            complaints.append(f"{path.name}: {e}")
    return None, complaints


def newest_well(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that verifies and was written while the run was well; None where there is none."""
    for path in _newest_first(folder):
        try:
            found = load(path)
        except DamagedError:
            continue
        if found.about["well"]:
            return found
    return None


def drop_newer(kept: Path) -> None:
    """Remove the checkpoints that are newer than `kept`: a roll-back has given them up. Raises OSError."""
    for path in list(_newest_first(kept.parent)):
        if path.name > kept.name:
            shutil.rmtree(path)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint after checking every digest. Raises DamagedError."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        for name, digest in manifest.items():
            if not (name == STATE or _TENSORS.fullmatch(name)):
                raise DamagedError(f"{MANIFEST} names {name!r}")
            if digest != _digest(path / name):
                raise DamagedError(f"{name} is not what was written")
        document = json.loads((path / STATE).read_text())
        tensors = Source(part for name in manifest if name != STATE for part in _parts(path / name))
        return Checkpoint(path, State.from_json(document["state"]), document["about"], tensors)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as e:
        raise DamagedError(f"{type(e).__name__}: {e}") from e


def _parts(path: Path) -> Iterator[Part]:
    """What a file holds, without reading it."""
    file: Any = safe_open(path, framework="pt")
    shapes = json.loads(file.metadata()["shapes"])
    for key in file.keys():  # noqa: SIM118  it is no dict
        start, _, name = key.partition(":")
        held = file.get_slice(key)
        yield Part(name, tuple(shapes[name]), int(start), held.get_shape()[0], slicer(held))


def _name(state: State) -> str:
    return f"samples-{state.samples:012d}"


def _newest_first(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from sorted((p for p in folder.iterdir() if _NAME.fullmatch(p.name)), reverse=True)


def _digest(path: Path) -> dict[str, Any]:
    digest = xxhash.xxh3_128()
    with path.open("rb") as f:
        while block := f.read(1 << 24):
            digest.update(block)
    return {"bytes": path.stat().st_size, "xxh3_128": digest.hexdigest()}


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
