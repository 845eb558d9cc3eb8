"""A forward pass, and the sums of it that all ranks add up: loss, count and stop flag, as one tensor on the device."""

from typing import final

import torch
from torch import Tensor, nn

from harness.config.schema import Config
from harness.data.feed import Micro
from harness.engine.device_scalars import Number, on_device
from harness.engine.interface import autocast
from harness.recipes.contract import Loss


@final
class LossSums:
    """Calls a recipe's loss in the config's precision. Numbers that the host knows are sent to the device when they change."""

    def __init__(self, loss: Loss, config: Config, dtype: torch.dtype, device: torch.device) -> None:
        self._loss, self._dtype, self._device = loss, dtype, device
        self._autocast = autocast(config, device)
        self._known: dict[int, tuple[float, Tensor]] = {}

    def of(self, model: nn.Module, micro: Micro, stop: float) -> tuple[Tensor, Tensor]:
        """(the summed loss [], to differentiate; the sums [loss, count, stop] as `dtype`). A padding pass counts nothing."""
        with self._autocast:
            total, count = self._loss.of(model, micro.batch)
        numbers: tuple[Number, Number, Number]
        if micro.chunk.padding:
            total, numbers = total * 0, (0.0, 0.0, stop)
        else:
            numbers = total.detach(), count, stop
        return total, torch.stack([self._sent(place, number) for place, number in enumerate(numbers)])

    def _sent(self, place: int, number: Number) -> Tensor:
        """A number as a tensor [] on the device."""
        if isinstance(number, Tensor):
            return on_device(number, self._device, self._dtype)
        known = self._known.get(place)
        if known is None or known[0] != number:
            known = self._known[place] = number, on_device(number, self._device, self._dtype)
        return known[1]
