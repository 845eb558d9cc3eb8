"""The optimizer of a plan, by name. None of our own: torch.optim and pytorch_optimizer."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from inspect import unwrap
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from harness.parts.recipe import Group, Recipe
from harness.plan.errors import UserError
from harness.plan.optimizers import optimizer_facts
from harness.plan.plan import Plan

MUON_ADAMW = 0.015
_FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)
_FUSED_SHARDS = (torch.optim.Adam, torch.optim.AdamW)
"""What torch has one kernel for, in general and for sharded tensors: its fused SGD and Adagrad refuse those (torch 2.13)."""


def build_optimizer(plan: Plan, recipe: Recipe, model: nn.Module, *, fused: bool) -> Optimizer:
    """The plan's optimizer over the recipe's parameter groups. `fused`: with torch's one-kernel step, where there is one.

    Each of its groups has `lr_scale`, by which the engine multiplies the rate. Raises UserError.
    """
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
    if fused and kind in (_FUSED_SHARDS if plan.backend == "fsdp" else _FUSED):
        options["fused"] = True
    groups = _checked(recipe.groups(model), model)
    built = [
        {"params": g.parameters, "weight_decay": plan.weight_decay * g.weight_decay, "lr_scale": g.lr}
        for g in groups
        if g.parameters
    ]
    with _no_compiler():
        optimizer = kind(split_muon(built, recipe, model, plan) if plan.optimizer == "muon" else built, **options)
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"{facts.source} is no torch optimizer")
    return optimizer


@contextmanager
def _no_compiler() -> Iterator[None]:
    """Make an optimizer without torch's compiler: torch loads it, for a CPU second, to tell it to leave `add_param_group` alone."""
    wrapped = Optimizer.add_param_group
    Optimizer.add_param_group = unwrap(wrapped)  # type: ignore[method-assign]
    try:
        yield
    finally:
        Optimizer.add_param_group = wrapped  # type: ignore[method-assign]


def _checked(groups: list[Group], model: nn.Module) -> list[Group]:
    """The groups, after a check that every parameter that is trained is in exactly one. Raises UserError."""
    trained = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise UserError("recipe.use", "the model has no parameter that needs a gradient", "nothing to train")
    found = Counter(id(p) for g in groups for p in g.parameters)
    for key, name in trained.items():
        if found[key] != 1:
            raise UserError("recipe.use", f"groups() gives the parameter {name} {found[key]} times", "give each trained one once")
    return groups


def split_muon(built: list[dict[str, Any]], recipe: Recipe, model: nn.Module, plan: Plan) -> list[dict[str, Any]]:
    """Muon is for the matrices inside the blocks; embeddings, heads, norms and biases take its AdamW (Jordan et al. 2024).

    Their rate is MUON_ADAMW of Muon's, as in pytorch_optimizer's own defaults. Raises UserError where the recipe has no blocks.
    """
    hidden = {id(p) for block in recipe.blocks(model) for p in block.parameters() if p.ndim >= 2}
    if not hidden:
        raise UserError("optim.name", "is muon, but the recipe names no blocks", "give it blocks(model), or use adamw")
    out = []
    for group in built:
        for inside in (True, False):
            chosen = [p for p in group["params"] if (id(p) in hidden) == inside]
            scale = group["lr_scale"] * (1.0 if inside else MUON_ADAMW)
            decay = {} if inside else {"adamw_wd": group["weight_decay"]}
            if chosen:
                out.append(group | decay | {"params": chosen, "lr_scale": scale, "lr": plan.lr(0) * scale, "use_muon": inside})
    return out
