"""The optimizer of a plan, by name. None of our own: torch.optim and pytorch_optimizer."""

from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from harness.plan.errors import UserError
from harness.plan.optimizers import optimizer_facts
from harness.plan.plan import Plan

_FUSED = {
    "ddp": (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad),
    "fsdp": (torch.optim.Adam, torch.optim.AdamW),
}
"""What torch has one kernel for, by backend: its fused SGD and Adagrad refuse sharded tensors (measured with torch 2.13)."""


def build_optimizer(plan: Plan, model: nn.Module, device: torch.device) -> Optimizer:
    """The plan's optimizer over the model's parameters, fused on a GPU. Norms and biases (fewer than 2 axes) do not decay."""
    facts = optimizer_facts(plan.optimizer)
    package, _, name = facts.source.rpartition(".")
    try:
        kind = vars(import_module(package))[name]
    except ImportError as e:
        remedy = "pip install 'widebatch[optimizers]'"
        raise UserError("optim.name", f"{plan.optimizer} is in {package}, which is not installed", remedy) from e
    options: dict[str, Any] = {"lr": plan.lr(0)}
    rewritten = {"momentum": plan.momentum, "betas": plan.betas, "eps": plan.eps}
    options |= {name: value for name, value in rewritten.items() if value is not None}
    if facts.nesterov:
        options["nesterov"] = True
    if kind in _FUSED[plan.backend] and device.type == "cuda":
        options["fused"] = True
    params = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise UserError("recipe.use", "the model has no parameter that needs a gradient", "nothing to train")
    groups = [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": plan.weight_decay},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = kind([g for g in groups if g["params"]], **options)
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"{facts.source} is no torch optimizer")
    return optimizer
