"""A run's weights as a file for other programs: safetensors by parameter name, or the folder that Hugging Face's loaders read."""

import json
import tempfile
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from harness.checkpoint import reader as checkpoint
from harness.checkpoint.tensor_slices import SliceReader
from harness.config.errors import UserError
from harness.config.run_folder import RunFolder
from harness.config.schema import Config, RecipeConfig
from harness.engine.initial_model import initial_model
from harness.modeling.tensor_digest import digest
from harness.recipes.base import load_recipe


def export(config: Config, run: Path, out: Path, *, average: bool = False, adapter: bool = False) -> str:
    """Write the weights of a run's newest good checkpoint: a file where `out` ends in .safetensors, else a Hugging Face folder.

    Of an optimizer with two kinds of weights (schedule-free), those to evaluate are written. `average`: the running average of the
    weights in their place; `adapter`: the trained adapters alone, in a folder as peft reads it. Returns what was written, as text.
    Raises UserError.
    """
    if out.exists():
        raise UserError("--out", f"{out} is there already", "give another name")
    found, complaints = checkpoint.newest(RunFolder(run).checkpoints(config))
    if found is None:
        raise UserError("export", f"{run} has no checkpoint that can be used {complaints or ''}".strip(), "train it first")
    weights = _tensors(found.tensors, "model/") | _tensors(found.tensors, "eval/")
    if adapter:
        return _adapter(config.recipe, weights, out)
    base = found.about.get("frozen") or {}
    weights |= _base(config, {name: there for name, there in base.items() if name not in weights})
    if average:
        averages = _tensors(found.tensors, "ema/")
        if not averages:
            raise UserError("--ema", f"{run} keeps no average of its weights", "train it with optim.ema, or leave it out")
        weights |= averages
    about = {"format": "pt", "samples": str(found.state.samples), "step": str(found.state.step)}
    if out.suffix == ".safetensors":
        out.parent.mkdir(parents=True, exist_ok=True)
        save_file(weights, out, metadata=about)
    else:
        _hugging_face(config.recipe, weights, about, out)
    return f"{out}: {sum(t.numel() for t in weights.values()):,} numbers of {found.name}, step {found.state.step:,}"


def _base(config: Config, digests: Mapping[str, str]) -> dict[str, Tensor]:
    """The frozen weights that a checkpoint has the digests of: as the recipe's model() makes them. Raises UserError."""
    if not digests:
        return {}
    model = initial_model(load_recipe(config.recipe), config.run.seed, config.init_from, partial=config.init_partial)
    held = {name: p.detach() for name, p in model.named_parameters() if name in digests}
    for name, there in digests.items():
        if name not in held or digest(held[name]) != there:
            at = f"the frozen weight {name} that model() makes is not the one that the run was trained with"
            raise UserError("recipe.use", at, "use that base model again")
    return {name: tensor.contiguous() for name, tensor in held.items()}


def _adapter(config: RecipeConfig, weights: dict[str, Tensor], out: Path) -> str:
    """The trained adapters as a folder: all of it or nothing. What was written, as text. Raises UserError."""
    recipe = load_recipe(config)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as name:
        folder = Path(name) / out.name
        folder.mkdir()
        recipe.adapter_files(weights, folder)
        folder.rename(out)
    return f"{out}: {sum(t.numel() for t in weights.values()):,} numbers of adapters"


def _tensors(tensors: SliceReader, kind: str) -> dict[str, Tensor]:
    """Whole tensors of one kind ("model/", "eval/", "ema/"), by their names without it."""
    return {name.removeprefix(kind): tensors.whole(name).contiguous() for name in tensors if name.startswith(kind)}


def _hugging_face(config: RecipeConfig, weights: dict[str, Tensor], about: dict[str, str], out: Path) -> None:
    """config.json, model.safetensors and what the recipe puts beside them; all of it or nothing."""
    recipe = load_recipe(config)
    layout = recipe.hugging_face(weights)
    if layout is None:
        at = f"is {str(out)!r}, a Hugging Face folder, and the recipe {config.use} has no such layout"
        raise UserError("--out", at, "end it in .safetensors, or give the recipe hugging_face(weights)")
    settings, tensors = layout
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as name:
        folder = Path(name) / out.name
        folder.mkdir()
        dtype = str(widest(tensors)).removeprefix("torch.")
        (folder / "config.json").write_text(json.dumps(with_dtype(settings, dtype) | {"dtype": dtype}, indent=1))
        save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors", metadata=about)
        recipe.hugging_face_files(folder)
        folder.rename(out)


def widest(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The floating dtype that holds every floating tensor exactly: loaders cast all of them to the one that config.json names."""
    found = [t.dtype for t in tensors.values() if t.is_floating_point()]
    return reduce(torch.promote_types, found) if found else torch.float32


def with_dtype(settings: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The settings with `dtype` wherever a dtype is named: a folder that training started from may name another."""
    out: dict[str, Any] = {}
    for name, value in settings.items():
        out[name] = with_dtype(value, dtype) if isinstance(value, Mapping) else value
        if name in ("dtype", "torch_dtype"):
            out[name] = dtype
    return out
