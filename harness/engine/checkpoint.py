"""Checkpoints on disk: a folder with safetensors and JSON, committed by one rename, verified before it is used.

    checkpoints/samples-000000012800/
        tensors.safetensors   weights and optimizer state, by name
        state.json            where the run stands, and the plan it stood under
        manifest.json         size and xxh3_128 digest of each file above

Nothing here unpickles. The number of ranks leaves no trace in a checkpoint.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.engine.state import State

TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
_NAME = re.compile(r"samples-\d{12}")


class DamagedError(Exception):
    """A checkpoint that must not be used; the text says why."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint. `about` holds the facts of the run it was saved by: plan and data set size."""

    path: Path
    state: State
    about: dict[str, Any]
    tensors: dict[str, Tensor]


def save(folder: Path, state: State, about: Mapping[str, Any], tensors: dict[str, Tensor], keep: int) -> Path:
    """Write, flush and commit one checkpoint, then drop all but the newest `keep`. Raises OSError; then nothing is lost."""
    final = folder / f"samples-{state.samples:012d}"
    temporary = folder / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file(tensors, temporary / TENSORS)
    (temporary / STATE).write_text(json.dumps({"state": state.to_json(), "about": dict(about)}, indent=1))
    manifest = {name: _digest(temporary / name) for name in (TENSORS, STATE)}
    (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for name in (TENSORS, STATE, MANIFEST):
        _flush(temporary / name)
    _flush(temporary)
    if final.exists():
        shutil.rmtree(final)
    temporary.rename(final)
    _flush(folder)
    for old in list(_newest_first(folder))[keep:]:
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


def load(path: Path) -> Checkpoint:
    """Read a checkpoint after checking every digest. Raises DamagedError."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        for name in (TENSORS, STATE):
            if manifest[name] != _digest(path / name):
                raise DamagedError(f"{name} is not what was written")
        document = json.loads((path / STATE).read_text())
        return Checkpoint(path, State.from_json(document["state"]), document["about"], load_file(path / TENSORS))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as e:
        raise DamagedError(f"{type(e).__name__}: {e}") from e


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
