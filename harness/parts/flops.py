"""Floating-point operations of a training step, counted once on shapes alone: no device, no numbers, no time."""

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from harness.parts.recipe import Recipe


def count_flops(recipe: Recipe, batch: object, samples: int) -> float | None:
    """Operations of forward and backward per sample: matrix products and convolutions; attention in full, not the causal half.

    `batch` holds `samples` samples. None where the recipe's model cannot run on shapes alone.
    """
    try:
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            model = recipe.model()
            total, _ = recipe.loss(model, _shapes(batch))
            total.backward()  # type: ignore[no-untyped-call]
    except (NotImplementedError, RuntimeError, TypeError, ValueError):
        return None
    return float(counter.get_total_flops()) / samples


def _shapes(batch: object) -> object:
    """A batch on the meta device, in the type that the recipe's model has."""
    if isinstance(batch, Tensor):
        return batch.to("meta", torch.get_default_dtype() if batch.is_floating_point() else batch.dtype)
    if isinstance(batch, dict):
        return {name: _shapes(part) for name, part in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(_shapes(part) for part in batch)
    return batch
