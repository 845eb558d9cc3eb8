"""What an optimizer's first moment tells of the gradient noise scale, and what coupled weight decay adds to it.

Coupled decay adds decay x weights to each gradient (torch's SGD and Adam, Kingma & Ba 2014, 1412.6980); decoupled decay (AdamW,
Loshchilov & Hutter 2019, 1711.05101) never enters the moment.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from harness.config.schema import Config
from harness.engine.interface import Estimator
from harness.plan.plan import Plan

BLOCK = 1 << 28
"""Elements of one dot product: cuBLAS takes fewer than 2^31."""


def moments_estimator(plan: Plan, config: Config, optimizer: Optimizer) -> Estimator:
    """`moments` where the optimizer's first moment is known to be an average of gradients with the plan's beta, else `none`.

    A recipe's own optimizer counts where it is torch's SGD, Adam or AdamW with that beta.
    """
    groups = optimizer.param_groups
    averages = plan.optimizer in ("adam", "adamw") and plan.betas is not None and isinstance(optimizer, Adam)
    averages = averages and all(group["betas"][0] == plan.betas[0] and _averages(plan.betas[0]) for group in groups if plan.betas)
    if plan.optimizer in ("sgd", "nesterov") and plan.momentum and _averages(plan.momentum) and isinstance(optimizer, SGD):
        averages = all(group["momentum"] == plan.momentum and not group["dampening"] for group in groups)
    averages = averages and not any(group["maximize"] for group in groups)
    return "moments" if averages and config.watch.noise_scale else "none"


def _averages(beta: float) -> bool:
    """Whether a moment with this beta holds more than the last gradient, as floats count."""
    return 1 - beta < 1


@dataclass(frozen=True)
class Moment:
    """This rank's part of a first moment and of its weights, and the coupled weight decay."""

    value: Tensor
    weights: Tensor
    decay: float


def first_moments(optimizer: Optimizer, moved: Iterable[tuple[int, Tensor]], local: Callable[[Tensor], Tensor]) -> Iterator[Moment]:
    """The first moments of the tensors that the optimizer moves: `moved` gives each with the number of its group.

    `local` gives this rank's part of a tensor. Tensors without a moment are left out.
    """
    for number, weights in moved:
        state: dict[str, Any] = optimizer.state.get(weights, {})
        value = state.get("exp_avg", state.get("momentum_buffer"))
        if value is not None:
            group = optimizer.param_groups[number]
            decay = 0.0 if group.get("decoupled_weight_decay") else float(group["weight_decay"])
            yield Moment(local(value), local(weights.detach()), decay)


def coupled_decay(moments: Iterable[Moment]) -> Tensor | None:
    """NoiseSums' moment_decay and decay_square, of this rank's part: float64 [2]. None if no decay is coupled.

    By dot products: no copy of a weight is made.
    """
    found = []
    for moment in moments:
        if moment.decay:
            values, weights = (torch.split(t.reshape(-1), BLOCK) for t in (moment.value, moment.weights))
            for m, w in zip(values, weights, strict=True):
                found.append(torch.stack([moment.decay * torch.dot(m, w), moment.decay**2 * torch.dot(w, w)]))
    return torch.stack(found).sum(0, dtype=torch.float64) if found else None
