"""An optimizer of the recipe's own: what it may be, at which rates its groups run, and which weights it trains."""

import inspect
import math
from typing import Protocol, runtime_checkable

from torch import nn
from torch.optim import Optimizer

from harness.config.errors import UserError
from harness.plan.plan import Plan

_SETTING = "recipe.optimizer()"


@runtime_checkable
class TwoModes(Protocol):
    """An optimizer whose weights differ in training and evaluation, as those of schedule-free ones do (Defazio et al. 2024)."""

    def train(self) -> None:
        """Put the weights to train at in place."""

    def eval(self) -> None:
        """Put the weights to evaluate and to keep in place."""


@runtime_checkable
class TwoSteps(Protocol):
    """An optimizer that needs two gradients for each step (SAM, Foret et al. 2021, 2010.01412)."""

    def first_step(self) -> None:
        """Move to where the second gradient is taken."""

    def second_step(self) -> None:
        """Move back, and step."""


def check_own(optimizer: Optimizer, model: nn.Module, plan: Plan) -> Optimizer:
    """The optimizer, with `lr_scale` in each group: its rate over the plan's. Raises UserError if it cannot be trained with."""
    kind = type(optimizer).__name__
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if isinstance(optimizer, TwoSteps) or (closure is not None and closure.default is inspect.Parameter.empty):
        at = f"gives {kind}, whose step() needs a closure that runs the model again; here a step has one gradient"
        raise UserError(_SETTING, at, "give an optimizer whose step() needs no closure, such as torch.optim.AdamW")
    _check_parameters(optimizer, model)
    check_state(optimizer, _SETTING)
    base = _rate(optimizer, plan)
    for group in optimizer.param_groups:
        group.setdefault("lr_scale", float(group["lr"]) / base)
    return optimizer


def check_state(optimizer: Optimizer, setting: str) -> None:
    """Raises UserError if an optimizer keeps state outside of `Optimizer.state`: no checkpoint would hold it."""
    kind = type(optimizer).__name__
    inner = next((type(held).__name__ for held in vars(optimizer).values() if isinstance(held, Optimizer)), "")
    if inner or type(optimizer).state_dict is not Optimizer.state_dict:
        how = f"around another one ({inner})" if inner else "which overrides state_dict()"
        raise UserError(
            setting, f"gives {kind}, {how}: its state would not be saved", "give one optimizer that keeps all in its state"
        )


def _check_parameters(optimizer: Optimizer, model: nn.Module) -> None:
    known = {id(p) for p in model.parameters()}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    foreign = [p for p in held if id(p) not in known]
    if foreign:
        at = f"holds a parameter of shape {tuple(foreign[0].shape)} that model() does not have"
        raise UserError(_SETTING, at, "make it a parameter of the model, so that it is reduced over ranks and saved")
    if not any(p.requires_grad for p in held):
        raise UserError(_SETTING, "holds no parameter that needs a gradient: nothing to train", "give it some")


def _rate(optimizer: Optimizer, plan: Plan) -> float:
    """The plan's rate with which the recipe built its groups. Raises UserError if no group has one."""
    groups = [float(group["lr"]) for group in optimizer.param_groups if "lr_scale" not in group]
    if not groups:
        return 1.0
    for one in (float(optimizer.defaults.get("lr", math.nan)), *sorted(groups, reverse=True)):
        for rate in (plan.lr(0), plan.target_lr):
            if math.isclose(rate, one, rel_tol=1e-6):
                return rate
    at = f"has groups at lr {', '.join(f'{rate:g}' for rate in groups)}, and none is the plan's {plan.lr(0):g}"
    raise UserError(_SETTING, at, "build it with lr=plan.lr(0) and multiples of that, or set lr_scale in each group")
