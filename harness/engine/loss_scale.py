"""The loss scale of fp16: by torch's GradScaler, which lowers it after an overflow and raises it after many steps without."""

import math
from typing import final

import torch
from torch import Tensor
from torch.optim import Optimizer

from harness.checkpoint.tensor_slices import SliceReader

SCALE = "scaler/scale"
"""The name of the loss scale in checkpoints."""


@final
class LossScale:
    """The scale of one optimizer's gradients on this rank; the same on all ranks."""

    def __init__(self, device: torch.device, optimizer: Optimizer) -> None:
        self._device, self._optimizer = device, optimizer
        self._scaler = torch.amp.GradScaler(device.type)

    def now(self) -> Tensor:
        """The scale of this step: [], on the device."""
        return self.scaled(torch.ones((), device=self._device))

    def scaled(self, objective: Tensor) -> Tensor:
        """An objective times the scale: to differentiate."""
        return self._scaler.scale(objective)

    def unscale(self) -> Tensor:
        """Divide the gradients by the scale, which is returned."""
        scale = self.now()
        self._scaler.unscale_(self._optimizer)
        return scale

    def update(self) -> None:
        """After a step: lower the scale where a gradient overflowed."""
        self._scaler.update()

    def forget(self) -> None:
        """Keep the scale after a step that did not fit in memory: the scaler must not take the next gradients for unscaled."""
        self.now()  # the scaler has a scale from its first use on
        self._scaler.update(self._scaler.get_scale())

    def state(self) -> dict[str, Tensor]:
        """The scaler's state for checkpoints."""
        return {SCALE: self.now()}

    def load(self, source: SliceReader) -> None:
        """Load the scaler's state from a checkpoint, if it has one: a checkpoint of another precision does not."""
        if SCALE in source:
            self._scaler.load_state_dict(self._scaler.state_dict() | {"scale": float(source.whole(SCALE))})


def power_of_two(count: float) -> float:
    """The power of two at or below a count of items. Dividing a sum by it is exact, and keeps fp16 in range."""
    return 2.0 ** math.floor(math.log2(count)) if count >= 1 else 1.0


def power_of_two_on_device(count: Tensor) -> Tensor:
    """As `power_of_two`, of a count [] that the host does not know and is not asked for: float32 []."""
    count = count.to(torch.float32)
    mantissa, _ = torch.frexp(count)  # in [0.5, 1): the count is mantissa * 2^exponent
    return torch.where(count >= 1, count / (2 * mantissa), 1.0)
