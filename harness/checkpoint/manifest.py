"""What a committed checkpoint consists of: its names, and the manifest that holds size and xxh3_128 digest of every file. Pure.

    samples-000000012800/                     the newest has the most samples; `-1` behind it where the same place was saved again
        tensors-0002-of-0004.safetensors      what rank 2 of 4 held (safetensors_io.py)
        state.json                            where the run stands, and facts of the run it was saved by
        manifest.json                         {"files": {NAME: {"bytes", "xxh3_128"}}, "xxh3_128": digest of "files"}

The manifest must be byte for byte what `encode` writes, so that no damage of it goes unseen.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import xxhash

STATE, MANIFEST, EVALUATED = "state.json", "manifest.json", "evaluated.json"
"""The last name: state.json after the final evaluation, added to the checkpoint of a run's end, which is saved before that
evaluation."""
LARGEST_JSON = 64 << 20
"""The longest state or manifest that is read, in bytes: a longer one was not written by us."""
_NAME = re.compile(r"samples-([0-9]{12})(?:-([0-9]{1,6}))?")
_TENSORS = re.compile(r"tensors-([0-9]{4,6})-of-([0-9]{4,6})\.safetensors")


class DamagedError(Exception):
    """A checkpoint that must not be used; the text says why."""


@dataclass(frozen=True)
class Digest:
    """Size and digest of a file."""

    bytes: int
    xxh3_128: str


def digest(blocks: Iterable[bytes | memoryview]) -> Digest:
    """The digest of a file's bytes, given block by block."""
    size, found = 0, xxhash.xxh3_128()
    for block in blocks:
        found.update(block)
        size += len(block)
    return Digest(size, found.hexdigest())


def checkpoint_name(samples: int, again: int = 0) -> str:
    """The folder of a checkpoint at `samples`; `again` counts earlier ones of the same place."""
    return f"samples-{samples:012d}" + (f"-{again}" if again else "")


def place_of(name: str) -> tuple[int, int] | None:
    """(samples, again) of a checkpoint's folder, None for any other name. Later ones compare larger."""
    match = _NAME.fullmatch(name)
    return (int(match[1]), int(match[2] or 0)) if match else None


def free_name(name: str, taken: Iterable[str]) -> str:
    """`name`, or the next one of its place where that is taken."""
    here, _ = place_of(name) or (0, 0)
    used = {found[1] for t in taken if (found := place_of(t)) is not None and found[0] == here}
    return checkpoint_name(here, max(used) + 1 if used else 0)


def newest_first(names: Iterable[str]) -> list[str]:
    """The names that are checkpoints' own, newest first."""
    found = [(place, name) for name in names if (place := place_of(name)) is not None]
    return [name for _, name in sorted(found, reverse=True)]


def tensors_file(rank: int, ranks: int) -> str:
    """The file of one rank."""
    return f"tensors-{rank:04d}-of-{ranks:04d}.safetensors"


def encode(files: Mapping[str, Digest]) -> bytes:
    """The text of the manifest."""
    tree = {name: asdict(found) for name, found in sorted(files.items())}
    return json.dumps({"files": tree, "xxh3_128": xxhash.xxh3_128_hexdigest(json.dumps(tree).encode())}, indent=1).encode()


def decode(text: bytes) -> dict[str, Digest]:
    """The files of a manifest. Raises DamagedError where it is not byte for byte what was written, or names another's file."""
    try:
        files = {str(name): Digest(**found) for name, found in json.loads(text)["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise DamagedError(f"{MANIFEST} cannot be read ({type(e).__name__})") from e
    if encode(files) != text:
        raise DamagedError(f"{MANIFEST} is not what was written")
    ranks = [match for name in files if (match := _TENSORS.fullmatch(name))]
    stranger = next((name for name in files if name != STATE and not _TENSORS.fullmatch(name)), None)
    if stranger is not None:
        raise DamagedError(f"{MANIFEST} names {stranger!r}")
    if STATE not in files or not ranks or sorted(int(m[1]) for m in ranks) != list(range(int(ranks[0][2]))):
        raise DamagedError(f"{MANIFEST} does not name the files of all ranks")
    return files


def seal(document: Mapping[str, Any]) -> bytes:
    """A document with its digest, as JSON."""
    return json.dumps({"document": document, "xxh3_128": xxhash.xxh3_128_hexdigest(json.dumps(document).encode())}).encode()


def unseal(text: bytes) -> dict[str, Any] | None:
    """The document that `seal` was given; None if the text is not exactly what `seal` returned."""
    try:
        document: dict[str, Any] = json.loads(text)["document"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return document if seal(document) == text else None


@dataclass(frozen=True)
class RankedCheckpoint:
    """What decides which checkpoints are kept: `score` is its validation metric, the lower the better; `well` whether the run
    was."""

    name: str
    score: float | None = None
    well: bool = True
    lineage: str = ""


def to_delete(found: Sequence[RankedCheckpoint], here: str, keep: int, keep_best: int) -> list[str]:
    """Which of the checkpoints to drop once `here` is committed: all but those that follow.

    Of the run's own past, which ends at `here`: the latest at each sample count, and of these the `keep` newest, the `keep_best` of
    the lowest score, of equal ones the newer, and the newest that is well, to go back to. Checkpoints past `here` are damaged, or
    of training that was rolled back.
    """
    end = place_of(here) or (0, 0)
    latest: dict[int, RankedCheckpoint] = {}
    for one in sorted(found, key=lambda one: place_of(one.name) or (0, 0)):
        if (place_of(one.name) or (0, 0)) <= end:
            latest[(place_of(one.name) or (0, 0))[0]] = one
    order = sorted(latest, reverse=True)
    best = sorted((one.score, -samples) for samples, one in latest.items() if one.score is not None and math.isfinite(one.score))
    well = [samples for samples in order if latest[samples].well]
    kept = {latest[samples].name for samples in [*order[:keep], *(-negative for _, negative in best[:keep_best]), *well[:1]]}
    return [one.name for one in found if one.name not in kept]


def judged(name: str, state: Any) -> RankedCheckpoint:
    """The ranking facts of a checkpoint, from its state.json as parsed."""
    about = state.get("about") if isinstance(state, dict) else None
    score, well = (about.get("score"), about.get("well")) if isinstance(about, dict) else (None, None)
    own = state.get("state") if isinstance(state, dict) else None
    lineage = own.get("lineage", "") if isinstance(own, dict) else ""
    return RankedCheckpoint(name, float(score) if isinstance(score, int | float) else None, well is True, str(lineage))
