"""A script's optimizer, tuned at batch.reference: its numbers as settings of a run file, and the plan's in their place."""

from typing import Any

from torch.optim import Optimizer

from harness.config.errors import UserError
from harness.config.schema import Config
from harness.plan.optimizers import OPTIMIZERS, optimizer_facts
from harness.plan.plan import Plan


def tuned(optimizer: Optimizer) -> dict[str, Any]:
    """The section `optim` of a run file with the numbers of the script's optimizer. Raises UserError for an unknown optimizer."""
    name, defaults = _name(optimizer), optimizer.defaults
    facts = optimizer_facts(name)
    known = {"momentum": facts.momentum, "betas": facts.betas, "alpha": facts.alpha, "eps": facts.eps}
    given = {key: defaults.get(key) for key, has in known.items() if has is not None}
    decay = max(float(group.get("weight_decay", 0.0)) for group in optimizer.param_groups)
    return {"name": name, "lr": _rate(optimizer), "weight_decay": decay} | {
        key: list(value) if isinstance(value, tuple) else value for key, value in given.items() if isinstance(value, float | tuple)
    }


def with_tuned(section: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """A section `optim` with the script's numbers added. Raises UserError where both have a number and they differ."""
    found = tuned(optimizer)
    for key, value in found.items():
        if key in section and section[key] is not None and section[key] != value:
            at = f"is {section[key]}, but the script's {type(optimizer).__name__} has {value}"
            raise UserError(f"optim.{key}", at, "leave it out: the script's optimizer is the one that was tuned at batch.reference")
    return section | found


def take_plan(optimizer: Optimizer, config: Config, plan: Plan) -> None:
    """Put the plan's numbers in the place of the tuned ones. Each group keeps its own factor of lr and of the weight decay."""
    planned = {"momentum": plan.momentum, "betas": plan.betas, "alpha": plan.alpha, "eps": plan.eps}
    for group in optimizer.param_groups:
        group["lr_scale"] = float(group.get("initial_lr", group["lr"])) / config.optim.lr
        if config.optim.weight_decay:
            group["weight_decay"] *= plan.weight_decay / config.optim.weight_decay
        for key, value in planned.items():
            if value is not None and key in group:
                group[key] = value


def _name(optimizer: Optimizer) -> str:
    kind = type(optimizer)
    package = kind.__module__.partition(".")[0]
    for name, facts in OPTIMIZERS.items():
        same = facts.source.partition(".")[0] == package and facts.source.rpartition(".")[2] == kind.__name__
        if same and facts.nesterov == bool(optimizer.defaults.get("nesterov")):
            return name
    return kind.__name__.lower()


def _rate(optimizer: Optimizer) -> float:
    """The rate that groups' rates are multiples of: the optimizer's own where a group has it, else the largest."""
    rates = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
    own = optimizer.defaults.get("lr")
    return float(own) if own in rates else max(rates)
