"""How a pass is computed: TF32, memory layout, activation checkpointing, compilation: the same run, faster or in less memory."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from harness.config.errors import UserError
from harness.config.schema import ComputeConfig
from harness.recipes.base import Recipe


def prepare_model(model: nn.Module, recipe: Recipe, compute: ComputeConfig) -> nn.Module:
    """The model as `compute` wishes it, before it is wrapped or sharded. Names of parameters stay. Raises UserError."""
    torch.set_float32_matmul_precision("high" if compute.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = compute.tf32
    if compute.channels_last:
        model = cast(nn.Module, model.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    blocks = list(recipe.blocks(model))
    if compute.recompute:
        _recompute(blocks)
    if compute.compile:
        for part in blocks or [model]:
            part.compile()
    return model


def _recompute(blocks: Sequence[nn.Module]) -> None:
    """Activation checkpointing (Chen et al. 2016, 1604.06174): keep a block's inputs alone, and run it again in the backward."""
    if not blocks:
        raise UserError("compute.recompute", "is true, but the recipe names no blocks", "give it blocks(model), or leave it out")
    for block in blocks:
        block.forward = _forgetful(block.forward)


def _forgetful(forward: Callable[..., Any]) -> Callable[..., Any]:
    return partial(checkpoint, forward, use_reentrant=False)
