"""The optimizer of a plan, by name: of torch.optim, pytorch_optimizer or a file; muon.py puts AdamW beside Muon."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from inspect import unwrap
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from harness.config.errors import UserError
from harness.config.user_code import load_attribute
from harness.modeling.memory_layout import dense
from harness.modeling.muon import MuonAdamW, split_muon
from harness.modeling.own_optimizer import TwoModes, check_own, check_state
from harness.modeling.trial_step import check_step
from harness.plan.optimizers import optimizer_facts
from harness.plan.plan import Plan
from harness.recipes.base import Group, Recipe
from harness.recipes.contract import own_optimizer

_FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)
_FUSED_SHARDS = (torch.optim.Adam, torch.optim.AdamW)
"""What torch has one kernel for, in general and for sharded tensors: its fused SGD and Adagrad refuse those (torch 2.13)."""


def open_optimizer(plan: Plan, recipe: Recipe, model: nn.Module, *, fused: bool) -> Optimizer:
    """The recipe's own optimizer, or else the plan's, over weights that are trained: those that need a gradient and that it holds.

    Weights that it does not hold are frozen: nothing would move them. Frozen ones that it holds are taken out of its groups.

    Raises UserError.
    """
    own = own_optimizer(recipe, model, plan)
    optimizer = build_optimizer(plan, recipe, model, fused=fused) if own is None else check_own(own, model, plan)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for parameter in model.parameters():
        if parameter.requires_grad and id(parameter) not in held:
            parameter.requires_grad_(False)
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if p.requires_grad]
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
    if isinstance(optimizer, TwoModes):
        optimizer.train()
    return optimizer


def build_optimizer(plan: Plan, recipe: Recipe, model: nn.Module, *, fused: bool) -> Optimizer:
    """The plan's optimizer over the recipe's parameter groups. `fused`: with torch's one-kernel step, where there is one.

    That kernel walks through memory, so parameters with gaps (views of larger tensors) get the step without it.
    Each of its groups has `lr_scale`, by which the engine multiplies the rate. Raises UserError.
    """
    facts = optimizer_facts(plan.optimizer)
    kind = _kind(plan.optimizer)
    options = _options(plan)
    if fused and kind in (_FUSED_SHARDS if plan.backend == "fsdp" else _FUSED) and _fusable(model):
        options["fused"] = True
    groups = [g for g in _checked(recipe.groups(model), model) if g.parameters]
    built = [{"params": g.parameters, "weight_decay": plan.weight_decay * g.weight_decay, "lr_scale": g.lr} for g in groups]
    with _no_compiler():
        if facts.family == "unknown":
            check_step(plan.optimizer, kind, plan.target_lr, plan.weight_decay, [p.shape for g in groups for p in g.parameters])
        optimizer = kind(split_muon(built, recipe, model, plan) if plan.optimizer == "muon" else built, **options)
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"{facts.source} is not a torch optimizer")
    check_state(optimizer, "optim.name")
    return optimizer


def _kind(name: str) -> Any:
    """The class of the optimizer that a run file calls `name`: of a library, or of the user's file. Raises UserError."""
    if ":" in name:
        own = load_attribute("optim.name", name)
        if not (isinstance(own, type) and issubclass(own, Optimizer)):
            raise UserError("optim.name", f"{name} is not a subclass of torch.optim.Optimizer", "make it a subclass")
        return own
    if name == "muon":
        return MuonAdamW
    package, _, kind = optimizer_facts(name).source.rpartition(".")
    try:
        return vars(import_module(package))[kind]
    except ImportError as e:
        remedy = "pip install 'widebatch[optimizers]'"
        raise UserError("optim.name", f"{name} is in {package}, which is not installed", remedy) from e


def _options(plan: Plan) -> dict[str, Any]:
    """The arguments of the plan's optimizer that are the plan's numbers."""
    rewritten = {"momentum": plan.momentum, "betas": plan.betas, "alpha": plan.alpha, "eps": plan.eps}
    options: dict[str, Any] = {"lr": plan.lr(0)} | {name: value for name, value in rewritten.items() if value is not None}
    return options | ({"nesterov": True} if optimizer_facts(plan.optimizer).nesterov else {})


def _fusable(model: nn.Module) -> bool:
    """Whether one kernel may walk through all weights: no kernel is fused for complex ones."""
    floating = all(p.is_floating_point() for p in model.parameters() if p.requires_grad)
    return floating and all(map(dense, model.parameters()))


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
