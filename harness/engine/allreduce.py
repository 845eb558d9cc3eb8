"""An all-reduce of gradients that brings along what else the ranks agree on: what ddp and zero0 share.

The step's loss, count and stop flag travel inside the gradient all-reduce, as the gradient of a three-element parameter, the
carrier: they cost no message of their own.
"""

from typing import final

import torch
from torch import Tensor, nn

from harness.config.schema import Config
from harness.data.feed import Micro
from harness.engine.device_scalars import Number, on_device
from harness.engine.gradients import is_one
from harness.engine.loss_scale import LossScale
from harness.engine.loss_sums import LossSums
from harness.engine.passes import Sums, as_sums
from harness.engine.process import Process
from harness.engine.replicated import Replica
from harness.recipes.base import Recipe
from harness.recipes.contract import Loss


class Unit(nn.Module):
    """What is wrapped: model and loss in one forward, and the carrier whose gradient brings sums over all ranks."""

    def __init__(self, recipe: Recipe, model: nn.Module, config: Config, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.model, self._sums = model, LossSums(Loss(recipe), config, dtype, device)
        self.carrier = nn.Parameter(torch.zeros(3, dtype=dtype, device=device))

    def forward(self, micro: Micro, stop: float, divide: Number) -> tuple[Tensor, Tensor]:
        """(scalar whose gradient is that of the summed loss / `divide` and carries the sums, the sums [loss, count, stop])."""
        total, sums = self._sums.of(self.model, micro, stop)
        total = total.to(self.carrier.dtype)
        return (total if is_one(divide) else total / divide) + self.carrier.dot(sums), sums


def open_unit(replica: Replica, recipe: Recipe) -> Unit:
    """The unit of this rank's copy."""
    process = replica.process
    return Unit(recipe, replica.setup.model, process.config, process.dtype, process.device)


@final
class Carried:
    """The sums that an all-reduce has left in the carrier's gradient.

    `added`: it leaves the sum over ranks in every gradient, and not the mean, which would take a pass over all of them.
    `rounds`: gradients are rounded on their way, so that counts cannot travel with them.
    """

    def __init__(self, unit: Unit, process: Process, fp16: LossScale | None, *, added: bool = False, rounds: bool = False) -> None:
        self._carrier, self._process, self._fp16, self._rounds = unit.carrier, process, fp16, rounds
        self._added = added
        self.regroup()

    def regroup(self) -> None:
        """The ranks are others."""
        self.parts = 1 if self._added else self._process.ranks
        """The factor from every gradient to the sum over ranks."""

    def take(self, local: Sums) -> Sums:
        """The sums over all ranks, after the last backward of a step; `local` holds this rank's."""
        carried, self._carrier.grad = self._carrier.grad, None
        assert carried is not None  # noqa: S101  the backward made it
        if self._process.ranks == 1:
            return local
        if self._rounds:
            own = torch.stack([on_device(part, carried.device, carried.dtype) for part in local])
            return as_sums(self._process.reduce(own))
        if self._fp16:
            carried = carried / self._fp16.now()
        return as_sums(carried * self.parts)  # a copy: the next step writes over the gradient
