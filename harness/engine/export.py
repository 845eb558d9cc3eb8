"""A run's weights as a file for other programs: safetensors by parameter name, or the folder that Hugging Face's loaders read."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from harness.engine import checkpoint
from harness.engine.pieces import Source
from harness.parts.recipe import load_recipe
from harness.plan.config import RecipeConfig
from harness.plan.decode import load
from harness.plan.errors import UserError


def export(run: Path, out: Path, *, average: bool = False) -> str:
    """Write the newest good checkpoint's weights to `out`: one file where it ends in .safetensors, else a Hugging Face folder.

    `average`: the running average of the weights in their place. Returns what was written, in words. Raises UserError.
    """
    if not (run / "run.yaml").is_file():
        raise UserError("export", f"{run} is no run folder: it has no run.yaml", "give the folder that a run wrote")
    if out.exists():
        raise UserError("--out", f"{out} is there already", "give another name")
    found, complaints = checkpoint.newest(load(run / "run.yaml").checkpoint.dir or str(run / "checkpoints"))
    if found is None:
        raise UserError("export", f"{run} has no checkpoint that can be used {complaints or ''}".strip(), "train it first")
    weights = {name: found.tensors.whole(f"model/{name}").contiguous() for name in _names(found.tensors, "model/")}
    if average:
        averages = _names(found.tensors, "ema/")
        if not averages:
            raise UserError("--ema", f"{run} keeps no average of its weights", "train it with optim.ema, or leave it out")
        weights |= {name: found.tensors.whole(f"ema/{name}").contiguous() for name in averages}
    about = {"format": "pt", "samples": str(found.state.samples), "step": str(found.state.step)}
    if out.suffix == ".safetensors":
        out.parent.mkdir(parents=True, exist_ok=True)
        save_file(weights, out, metadata=about)
    else:
        _hugging_face(load(run / "run.yaml").recipe, weights, about, out)
    return f"{out}: {sum(t.numel() for t in weights.values()):,} numbers of {found.name}, step {found.state.step:,}"


def _names(tensors: Source, kind: str) -> list[str]:
    return [name.removeprefix(kind) for name in tensors if name.startswith(kind)]


def _hugging_face(config: RecipeConfig, weights: dict[str, Tensor], about: dict[str, str], out: Path) -> None:
    """config.json and model.safetensors, as the recipe lays them out."""
    recipe = load_recipe(config)
    layout = recipe.hugging_face(weights)
    if layout is None:
        at = f"is {str(out)!r}, a Hugging Face folder, and the recipe {config.use} has no such layout"
        raise UserError("--out", at, "end it in .safetensors, or give the recipe hugging_face(weights)")
    settings, tensors = layout
    out.mkdir(parents=True)
    (out / "config.json").write_text(json.dumps(settings, indent=1))
    save_file({name: t.to(torch.float32).contiguous() for name, t in tensors.items()}, out / "model.safetensors", metadata=about)
