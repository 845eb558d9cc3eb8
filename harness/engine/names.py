"""Weights and optimizer state by names, so that they outlive the order, the grouping and the world they were saved in."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from harness.engine.pieces import Source
from harness.plan.errors import UserError

GROUP = "group:"
"""Marks a number that the optimizer counts per group and not per parameter, as pytorch_optimizer does its steps."""


def name_optimizer(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The state as tensors named `PARAMETER/KEY`. Numbers become 0-d float64 tensors."""
    out = {}
    per_group = {id(p): counted(optimizer, group) for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter, {}) | per_group.get(id(parameter), {})
        for key, value in state.items():
            if isinstance(value, Tensor):
                out[f"{name}/{key}"] = value
            elif isinstance(value, bool | int | float):
                out[f"{name}/{key}"] = torch.tensor(value, dtype=torch.float64)
            elif value is not None:
                raise UserError("optim.name", f"state {key!r} of {name} is a {type(value).__name__}", "choose another optimizer")
    return out


def load_optimizer(model: nn.Module, optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Take named state over. Group settings (lr, betas, decay) stay as they are: they are the plan's, not the checkpoint's."""
    by_name: dict[str, dict[str, Any]] = {}
    for full, value in tensors.items():
        name, _, key = full.rpartition("/")
        by_name.setdefault(name, {})[key] = float(value) if value.dtype == torch.float64 and value.ndim == 0 else value
    parameters = dict(model.named_parameters())
    unknown = sorted(set(by_name) - set(parameters))
    if unknown:
        at = f"the checkpoint has optimizer state for {unknown[0]}, the model no such parameter"
        raise UserError("recipe", at, "use the recipe it was trained with, or another run.dir")
    tree = optimizer.state_dict()
    place = {id(p): number for number, p in enumerate(p for g in optimizer.param_groups for p in g["params"])}
    tree["state"] = {}
    for name, state in by_name.items():
        own = {key: value for key, value in state.items() if not key.startswith(GROUP)}
        if own:
            tree["state"][place[id(parameters[name])]] = own
    optimizer.load_state_dict(tree)
    home = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, state in by_name.items():
        for key, value in state.items():
            if key.startswith(GROUP):
                home[id(parameters[name])][key.removeprefix(GROUP)] = int(value)


def counted(optimizer: Optimizer, group: dict[str, Any]) -> dict[str, int]:
    """What the optimizer added to a group by itself: whole numbers that are no setting."""
    added = {key: value for key, value in group.items() if key not in optimizer.defaults and type(value) is int}
    return {GROUP + key: value for key, value in added.items()}


def persistent(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that belong to a model's state, by name."""
    kept = model.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in model.named_buffers() if name in kept}


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; what is tied counts once, under its first name."""
    return dict(model.named_parameters()) | persistent(model)


def check_fit(mine: Mapping[str, tuple[int, ...]], source: Source) -> None:
    """Raises UserError where the names and shapes of a checkpoint's weights are not those of this model."""
    theirs = {name.removeprefix("model/"): source.shape(name) for name in source if name.startswith("model/")}
    for name in sorted({*mine, *theirs}):
        here, there = mine.get(name), theirs.get(name)
        if here != there:
            at = f"the checkpoint's weights do not fit this model: {name} is {there or 'missing'} there, {here or 'missing'} here"
            raise UserError("recipe", at, "use the recipe and knobs it was trained with, or another run.dir")


def layer_label(name: str) -> str:
    """A parameter's name as part of a metric's: letters, digits and _ alone, or W&B cannot filter by it."""
    return "layer_" + "".join(c if c.isalnum() else "_" for c in name)
