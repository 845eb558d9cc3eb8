"""Weights by names, so that they outlive the order, the grouping and the world they were saved in."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from harness.checkpoint.tensor_slices import SliceReader
from harness.config.errors import UserError


def persistent(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that belong to a model's state, by name."""
    passing = {
        f"{prefix}.{key}" if prefix else key
        for prefix, module in model.named_modules()
        for key in module._non_persistent_buffers_set
    }
    return {name: buffer for name, buffer in model.named_buffers() if name not in passing}


def check_fit(mine: Mapping[str, tuple[int, ...]], frozen: Mapping[str, tuple[int, ...]], source: SliceReader) -> None:
    """Raises UserError if the names and shapes of a checkpoint's weights are not those of this model.

    Frozen weights may be in it: those that the recipe moved, and in checkpoints of earlier versions all.
    """
    theirs = {name.removeprefix("model/"): source.shape(name) for name in source if name.startswith("model/")}
    for name in sorted({*mine, *theirs}):
        here, there = mine.get(name, frozen.get(name)), theirs.get(name)
        if here != there:
            at = f"the checkpoint's weights do not fit this model: {name} is {there or 'missing'} there, {here or 'missing'} here"
            raise UserError("recipe", at, "use the recipe and settings it was trained with, or start a new run in another place")


def check_kinds(mine: Mapping[str, Tensor], source: SliceReader) -> None:
    """Raises UserError if a checkpoint has whole numbers where this model has others, or the reverse."""
    for name, tensor in mine.items():
        there = source.dtype(f"model/{name}")
        if there is not None and _is_whole(there) != _is_whole(tensor.dtype):
            at = f"the checkpoint's weights do not fit this model: {name} is {there} there, {tensor.dtype} here"
            raise UserError("recipe", at, "use the recipe and settings it was trained with, or start a new run in another place")


def _is_whole(dtype: torch.dtype) -> bool:
    return not dtype.is_floating_point and not dtype.is_complex


def layer_label(name: str) -> str:
    """A parameter's name as part of a metric's: letters, digits and _ alone, or W&B cannot filter by it."""
    return "layer_" + "".join(c if c.isalnum() else "_" for c in name)


def whole_shape(parameter: Tensor) -> tuple[int, ...]:
    """The whole shape of a parameter; zero3 leaves an empty tensor in its place."""
    return tuple(vars(parameter).get("ds_shape", parameter.shape))
