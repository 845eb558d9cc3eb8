"""Engines whose gradients meet in an all-reduce, which brings along what else the ranks agree on: what ddp and zero0 share.

The step's loss, count and stop flag travel inside the gradient all-reduce, as the gradient of a three-element parameter: they cost
no message of their own.
"""

import torch
from torch import Tensor, nn

from harness.engine.base import Sums, summed, told
from harness.engine.copies import CopyEngine
from harness.engine.ledger import Number
from harness.engine.torch_step import ratio
from harness.parts.data import Micro
from harness.parts.recipe import Recipe
from harness.plan.config import Config
from harness.plan.plan import Plan


class Unit(nn.Module):
    """What is wrapped: model and loss in one forward, and the carrier whose gradient brings sums over all ranks."""

    def __init__(self, recipe: Recipe, model: nn.Module, config: Config, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.recipe, self.model, self.config = recipe, model, config
        self.carrier = nn.Parameter(torch.zeros(3, dtype=dtype, device=device))

    def forward(self, micro: Micro, stop: float, divide: float) -> tuple[Tensor, Tensor]:
        """(scalar whose gradient is that of the summed loss / `divide` and carries the sums, the sums [loss, count, stop])."""
        total, sums = summed(self.recipe, self.model, micro, stop, self.config, self.carrier.dtype)
        return total.to(self.carrier.dtype) / divide + (self.carrier * sums).sum(), sums


class CarriedEngine(CopyEngine):
    """A subclass wraps `_unit` and runs its passes; the last leaves the mean over ranks in every gradient, the carrier's too."""

    _added = False
    """Whether it leaves the sum instead, which saves the pass over all gradients that a division is."""

    _rounds = False
    """Whether gradients are rounded on their way, so that counts cannot travel with them."""

    def __init__(self, config: Config, plan: Plan, recipe: Recipe, *, cpu: bool) -> None:
        super().__init__(config, plan, recipe, cpu=cpu)
        self._unit = Unit(recipe, self._model, config, self.dtype, self.device)

    def _meet(self, grads: list[Tensor], local: Sums) -> tuple[Sums, Tensor, Number]:
        """See TorchEngine._meet. The last backward has brought everything: a mean over ranks, times the ranks, is the sum."""
        carried, self._unit.carrier.grad = self._unit.carrier.grad, None
        assert carried is not None  # noqa: S101  the backward above made it
        if self.processes > 1 and self._rounds:
            local = told(self.reduce(torch.stack([torch.as_tensor(part, device=self.device) for part in local])))
        elif self.processes > 1:
            if self._scaler:
                carried = carried / self._scaler.scale(torch.ones_like(carried))
            local = told(carried * (1 if self._added else self.processes))  # a copy: the next step writes over the gradient
        divided = self._divide if self._added else self.processes * self._divide
        self._unscaled(local[1])
        return local, self._total(grads), ratio(divided, local[1])
