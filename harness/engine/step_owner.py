"""The end of a step: who moves the weights by the gradients that the passes left, torch's optimizer here or DeepSpeed."""

from abc import ABC, abstractmethod

from torch import Tensor

from harness.engine.device_scalars import Number
from harness.engine.interface import Limit
from harness.engine.passes import Sums
from harness.plan.plan import Plan

Row = tuple[Number, Number, Number, Tensor, Number, Tensor, Number]
"""Summed loss, count and stop flags over all ranks; the gradient's norm, the factor that clipped it, whether the step was bad (1:
something was not finite or over the limit, and no weight moved; float32 [], the same on every rank), and the loss scale."""


class StepOwner(ABC):
    """Normalises, clips, and moves the weights or skips the step."""

    moving = False
    """Whether weights may have moved in this step."""
    grad_norms: Tensor | None = None
    """After the last step of a window, the norm of each parameter's gradient; None if the backend does not expose them."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    @abstractmethod
    def finish(self, local: Sums, limit: Limit | None, *, close: bool) -> Row:
        """Move the weights; `local` holds this rank's sums. `close`: the last step of a window. Returns the step's row."""

    def adopt(self, plan: Plan) -> None:
        """Follow this plan from the next step on."""
        self.plan = plan

    @abstractmethod
    def loaded(self) -> None:
        """Called once the weights and the optimizer's state were taken from a checkpoint."""

    def clip_norm(self, limit: Limit | None) -> float | None:
        """To what the gradient's norm is clipped in this step: the plan's norm, or the step's own limit where that is lower."""
        if limit is None or limit.skip:
            return self.plan.clip
        return limit.norm if self.plan.clip is None else min(self.plan.clip, limit.norm)
