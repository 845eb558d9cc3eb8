"""How the passes of a step run on one backend: forward and backward of a micro-batch, and its sums."""

from abc import ABC, abstractmethod

from torch import Tensor

from harness.data.feed import Micro
from harness.engine.buffers import Buffers, Kept
from harness.engine.device_scalars import Number
from harness.engine.interface import Estimator
from harness.engine.model_setup import ModelSetup
from harness.engine.process import Process
from harness.plan.plan import Plan

Sums = tuple[Number, Number, Number]
"""Summed loss, count of items and stop flags."""


class Passes(ABC):
    """One backend's passes. In the last of a step the gradients of all ranks are reduced."""

    small: tuple[Number, Number] | None = None
    """(squared norm of the small batch's gradient, its items) of this step, for the noise scale; None if it was not measured."""

    def __init__(self, process: Process, plan: Plan, setup: ModelSetup, estimator: Estimator) -> None:
        self.process, self.plan, self.setup, self.estimator = process, plan, setup, estimator

    @abstractmethod
    def run(self, micro: Micro, stop: float, last: bool) -> Sums:
        """Forward and backward of one micro-batch. Returns this rank's sums."""

    @abstractmethod
    def first_done(self, sums: Sums) -> None:
        """Called after the first pass of a step, with its sums: the noise scale may take its gradient as the small batch's."""

    def check_trained(self) -> None:
        """Raises UserError if other parameters need a gradient than at the start."""
        self.setup.trained.check()

    def adopt(self, plan: Plan) -> None:
        """Follow this plan from the next step on."""
        self.plan = plan

    def regroup(self) -> None:
        """The ranks are others: `process` says which. Raises RuntimeError where this backend cannot do without a rank."""
        raise RuntimeError(f"backend {self.plan.backend} needs all of its ranks")

    def kept(self, buffers: Buffers) -> Kept:
        """The buffers as they were before the step's passes; called as the step begins."""
        return buffers.keep()

    def forget(self) -> None:
        """Drop the gradients and buffers of a step that did not fit in memory."""
        self.small = None


def as_sums(sums: Tensor) -> Sums:
    """The sums of a tensor [loss, count, stop]."""
    loss, count, stop = sums.unbind()
    return loss, count, stop
