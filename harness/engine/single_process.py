"""One process alone: backend ddp where there are no other ranks. No wrapper, and nothing on the device for ranks."""

import math
from typing import final

import torch
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from typing_extensions import override

from harness.config.schema import Config
from harness.data.feed import Micro
from harness.engine.device_scalars import Number
from harness.engine.gradients import Gradients, ratio
from harness.engine.interface import Engine, autocast
from harness.engine.passes import Sums
from harness.engine.replicated import Replica, open_replica
from harness.engine.torch_engine import torch_engine
from harness.plan.plan import Plan
from harness.recipes.base import Recipe
from harness.recipes.contract import Loss


def open_single_process(config: Config, plan: Plan, recipe: Recipe, *, cpu: bool) -> Engine:
    """The engine of one process: debugging, one GPU, or a simulated world."""
    replica = open_replica(config, plan, recipe, cpu=cpu)
    return torch_engine(SingleProcess(replica, recipe), replica.layout)


@final
class SingleProcess(Gradients):
    """Gradients that need no reduction."""

    def __init__(self, replica: Replica, recipe: Recipe) -> None:
        super().__init__(replica.process, replica.plan, replica.setup, replica.estimator, replica.fp16)
        self._model, self._loss = replica.setup.model, Loss(recipe)
        self._device, self._dtype = replica.process.device, replica.process.dtype
        self._autocast = autocast(replica.process.config, self._device)
        self._whole = self._one_pass()
        self._begin = (math.nan, torch.zeros((), device=self._device))

    @override
    def adopt(self, plan: Plan) -> None:
        super().adopt(plan)
        self._whole, self.start = self._one_pass(), None

    def _one_pass(self) -> bool:
        """Whether a step is one pass, so that its count is known before its backward."""
        return self.plan.passes == 1 and self.fp16 is None

    @override
    def run(self, micro: Micro, stop: float, last: bool) -> Sums:
        """Where a step is one pass the backward begins at 1 / count: nothing is left to normalise."""
        with self._autocast:
            total, counted = self._loss.of(self._model, micro.batch)
        if micro.chunk.padding:
            total, counted = total * 0, 0
        count = counted.detach().to(self._dtype) if isinstance(counted, Tensor) else float(counted)
        if self.fp16:
            self.fp16.scaled(total / self.divide).backward()  # type: ignore[no-untyped-call]
        elif self._whole:
            # as Tensor.backward(gradient), without 20 us of argument checks
            self.start = self._share(count, total)
            _engine_run_backward((total,), (self.start,), False, False, (), True, True)
        else:
            total.backward()  # type: ignore[no-untyped-call]
        return total.detach(), count, stop

    def _share(self, count: Number, total: Tensor) -> Tensor:
        """1 / count, as a gradient of `total`; nan where the host sees that nothing was counted."""
        if isinstance(count, Tensor):
            return count.reciprocal().to(total.dtype)
        if self._begin[0] != count:
            share = torch.full((), 1 / count if count else math.nan, dtype=total.dtype, device=self._device)
            self._begin = (count, share)
        return self._begin[1]

    @override
    def reduce(self, grads: list[Tensor], local: Sums) -> tuple[Sums, Tensor, Number]:
        divided = self.divide
        self.unscale(local[1])
        return local, self.total(grads), 1.0 if self._whole else ratio(divided, local[1])
