"""Whether an optimizer that the plan does not know can be trained with: made from lr and weight decay, and one step tried."""

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from harness.config.errors import UserError

_REMEDY = "use another, or make it in the recipe's optimizer(model, plan)"


def check_step(name: str, kind: Any, lr: float, weight_decay: float, shapes: Iterable[torch.Size]) -> None:
    """One step on small weights with as many axes as those of `shapes`, whose gradient is one everywhere.

    Raises UserError if that fails: the class needs a closure, a model, other optimizers ..., or a decay is given to one without.
    """
    if weight_decay and "weight_decay" not in inspect.signature(kind).parameters:
        raise UserError("optim.weight_decay", f"is {weight_decay:g}, but {name} has no weight decay", "leave it out")
    small = {tuple(min(size, 3 + axis) for axis, size in enumerate(shape)) for shape in shapes}
    weights = [nn.Parameter(torch.ones(shape)) for shape in sorted(small)]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    try:
        with torch.random.fork_rng(devices=[]):
            optimizer = kind([{"params": weights}], lr=lr)
            optimizer.step()
    except Exception as e:
        why = f"{type(e).__name__}: {str(e).strip().splitlines()[0] if str(e).strip() else 'no message'}"
        at = f"is {name}, which cannot take a step from lr and gradients alone ({why})"
        raise UserError("optim.name", at, _REMEDY) from e
    if not isinstance(optimizer, Optimizer):
        raise UserError("optim.name", f"is {name}, which is not a torch optimizer", _REMEDY)
