"""Weights in the formats of other programs: safetensors, a Hugging Face folder, torch's .pt, a DCP folder, a run of ours.

Tensors are fetched one by one. No code in a file is run: pickles are read for plain tensors alone, and refused for all else.
"""

import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from harness.checkpoint import reader as checkpoint
from harness.checkpoint.dcp_reader import METADATA, open_dcp
from harness.config.allowed_names import FILE, checked
from harness.config.errors import UserError
from harness.config.run_folder import RunFolder

SETTING = "init_from"
SAFE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = (".pt", ".pth", ".bin", ".ckpt")
_KINDS = "a .safetensors file, a Hugging Face folder, a .pt file of tensors, a DCP folder or the folder of a run"
_INSIDE = ("model", "state_dict", "model_state_dict", "module")
"""Under which names training scripts keep the weights in a .pt file."""
_LARGEST_INDEX = 100_000_000


@final
@dataclass(frozen=True)
class Weights:
    """Tensors by name: their shapes, and `fetch`, which gives one of them on the host. `where` names their place for people."""

    where: str
    shapes: Mapping[str, tuple[int, ...]]
    fetch: Callable[[str], Tensor]


def open_weights(path: str) -> Weights:
    """The weights at a path, in any of these formats. All ranks call it. Raises UserError."""
    place = Path(path)
    try:
        return _of_folder(place) if place.is_dir() else _of_file(place)
    except (SafetensorError, OSError, EOFError, RuntimeError, ValueError, KeyError) as e:
        lines = str(e).splitlines() or [type(e).__name__]
        raise UserError(SETTING, f"{path!r} cannot be read: {lines[0]}", "give a whole, undamaged one") from e


def _of_file(place: Path) -> Weights:
    if place.suffix == ".safetensors" and place.is_file():
        return _of_safetensors(str(place), [place])
    if place.suffix in PICKLED and place.is_file():
        return _of_torch(place)
    raise UserError(SETTING, f"{str(place)!r} is no file of weights", f"give {_KINDS}")


def _of_folder(place: Path) -> Weights:
    if RunFolder(place).own_checkpoints.is_dir():
        return _of_run(place)
    if (place / METADATA).is_file():
        shapes, fetch = open_dcp(place)
        return Weights(str(place), shapes, fetch)
    if (place / INDEX).is_file():
        return _of_safetensors(str(place), _shards(place))
    if (place / SAFE).is_file():
        return _of_safetensors(str(place), [place / SAFE])
    pickled = sorted(f for f in place.iterdir() if f.suffix in PICKLED)
    if len(pickled) == 1:
        return _of_torch(pickled[0])
    raise UserError(SETTING, f"{str(place)!r} holds no weights", f"give {_KINDS}")


def _shards(place: Path) -> list[Path]:
    """The files that a folder's index names: files of this folder alone. Raises UserError."""
    index = place / INDEX
    if index.stat().st_size > _LARGEST_INDEX:
        raise UserError(SETTING, f"{str(index)!r} is too large for an index", "give a folder that save_pretrained() wrote")
    tree = json.loads(index.read_bytes())
    named = tree.get("weight_map") if isinstance(tree, dict) else None
    if not isinstance(named, dict) or not all(isinstance(file, str) for file in named.values()):
        raise UserError(SETTING, f"{str(index)!r} has no weight_map", "give a folder that save_pretrained() wrote")
    files = sorted(set(named.values()))
    remedy = "give a folder whose index names files beside it"
    return [place / checked(SETTING, file, FILE, remedy) for file in files]


def _of_safetensors(where: str, files: list[Path]) -> Weights:
    homes: dict[str, Any] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        held: Any = safe_open(file, framework="pt")
        for name in held.keys():  # noqa: SIM118  it is no dict
            homes[name], shapes[name] = held, tuple(held.get_slice(name).get_shape())
    return Weights(where, shapes, lambda name: homes[name].get_tensor(name))


def _of_torch(place: Path) -> Weights:
    """A file of torch.save. Raises UserError if it holds more than tensors in dicts."""
    try:
        tree = _loaded(place)
    except pickle.UnpicklingError as e:
        at = f"{str(place)!r} holds Python objects beside tensors, which would run code as they are read"
        raise UserError(SETTING, at, "save the model's state_dict() alone, best as safetensors") from e
    for name in _INSIDE:
        if isinstance(tree, Mapping) and isinstance(tree.get(name), Mapping):
            tree = tree[name]
            break
    if not isinstance(tree, Mapping) or not tree:
        raise UserError(SETTING, f"{str(place)!r} holds a {type(tree).__name__}, no weights by name", "save a state_dict()")
    odd = next((str(name) for name, held in tree.items() if not isinstance(held, Tensor)), None)
    if odd is not None:
        at = f"{str(place)!r} holds {odd}, which is a {type(tree[odd]).__name__} and no tensor"
        raise UserError(SETTING, at, f"save the model's state_dict() alone, or under one of {', '.join(_INSIDE)}")
    weights = {str(name): held for name, held in tree.items()}
    return Weights(str(place), {name: tuple(held.shape) for name, held in weights.items()}, weights.__getitem__)


def _loaded(place: Path) -> Any:
    """What a file of torch.save holds: mapped into memory, or read where it is of the old format, which cannot be mapped."""
    try:
        return torch.load(place, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:
        return torch.load(place, map_location="cpu", weights_only=True)


def _of_run(place: Path) -> Weights:
    """The weights of a run's newest good checkpoint; the frozen ones are not in it. Raises UserError."""
    found, complaints = checkpoint.newest(str(RunFolder(place).own_checkpoints))
    if found is None:
        raise UserError(SETTING, f"{str(place)!r} has no checkpoint that can be used {complaints or ''}".strip(), "give another")
    tensors = found.tensors
    names = [name.removeprefix("model/") for name in tensors if name.startswith("model/")]
    base = sorted(found.about.get("frozen") or ())
    if base:
        at = f"{str(place)!r} holds no frozen weights, such as {base[0]}: those are in the base that it was trained from"
        raise UserError(SETTING, at, "give what `widebatch export` makes of it")
    where = f"{place} ({found.name})"
    return Weights(where, {name: tensors.shape(f"model/{name}") for name in names}, lambda name: tensors.whole(f"model/{name}"))
