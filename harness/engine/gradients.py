"""How the ranks' gradients are brought together, where torch's optimizer in this process then moves the weights."""

import math
from abc import abstractmethod

import torch
from torch import Tensor
from typing_extensions import override

from harness.engine.device_scalars import Number, norms, total_norm
from harness.engine.interface import Estimator
from harness.engine.loss_scale import LossScale, power_of_two, power_of_two_on_device
from harness.engine.model_setup import ModelSetup
from harness.engine.passes import Passes, Sums
from harness.engine.process import Process
from harness.plan.plan import Plan


class Gradients(Passes):
    """Passes that leave each parameter's gradient, over all ranks, with the parameter: one subclass for each way to reduce them.

    `fp16` is the loss scale, None in other precisions; losses are then divided by `divide` before the backward.
    """

    start: Tensor | None = None
    """1 / count of the step, where the backward began with it: not finite where nothing was counted, though the gradient may be."""
    own_norms: Tensor | None = None
    """The norm of each of the gradients of this step, where `reduce` has measured them."""
    scale: Number = 1.0
    """The loss scale of this step."""

    def __init__(
        self, process: Process, plan: Plan, setup: ModelSetup, estimator: Estimator, fp16: LossScale | None = None
    ) -> None:
        super().__init__(process, plan, setup, estimator)
        self.params, self.fp16 = setup.trained.parameters, fp16
        self.divide: Number = power_of_two(plan.global_batch) if fp16 else 1.0

    @abstractmethod
    def reduce(self, grads: list[Tensor], local: Sums) -> tuple[Sums, Tensor, Number]:
        """(the sums over all ranks, the gradient's global norm, the factor that makes it the gradient of the mean).

        `local` holds this rank's sums. The norm is of the gradient in `grads`; sums and norm are the same on every rank.
        """

    def grads(self) -> list[Tensor]:
        """The gradients as plain tensors, or as this rank's parts of them."""
        return [p.grad for p in self.params if p.grad is not None]

    def before_step(self, clipped: Number, bad: Tensor) -> None:
        """Called before the optimizer steps, or skips where `bad` ([]) is 1; gradients were multiplied by `clipped`."""

    def moved(self, bad: Tensor) -> None:
        """Called once the optimizer has stepped or, where `bad` ([]) is 1, has skipped the step."""
        if self.fp16:
            self.fp16.update()  # lower, where a gradient overflowed, which `bad` says as well

    @override
    def first_done(self, sums: Sums) -> None:
        if self.estimator == "passes" and self.plan.passes > 1:  # nothing is reduced yet: the gradient of this pass alone
            self.small = total_norm(self.grads()) ** 2, sums[1]

    @override
    def forget(self) -> None:
        super().forget()
        if self.fp16:
            self.fp16.forget()

    def unscale(self, count: Number) -> None:
        """fp16: divide the gradients by the loss scale, so that only `divide` is left in them; choose the next step's scale."""
        if self.fp16:
            self.scale = self.fp16.unscale()
            self.divide = power_of_two_on_device(count) if isinstance(count, Tensor) else power_of_two(count)

    def total(self, grads: list[Tensor]) -> Tensor:
        """The norm of the gradients as one vector; each one's own is kept."""
        self.own_norms = norms(grads)
        norm: Tensor = torch.linalg.vector_norm(self.own_norms)
        return norm


def is_one(number: Number) -> bool:
    """Whether the host knows that a factor changes nothing."""
    return isinstance(number, float) and number == 1.0


def ratio(divided: Number, count: Number) -> Number:
    """`divided` / `count`; nan where the host sees that nothing was counted, as a tensor would give something not finite."""
    return divided / count if isinstance(count, Tensor) or count else math.nan
