"""Backend zero0: a whole copy per process, as ddp, with DeepSpeed averaging the gradients. The step itself is ours."""

from typing import final

from torch import Tensor
from typing_extensions import override

from harness.config.schema import Config
from harness.data.feed import Micro
from harness.engine.allreduce import Carried, open_unit
from harness.engine.deepspeed import accumulate, before_reduction, open_deepspeed
from harness.engine.device_scalars import Number
from harness.engine.gradients import Gradients, ratio
from harness.engine.interface import Engine
from harness.engine.passes import Sums, as_sums
from harness.engine.replicated import Replica, open_replica
from harness.engine.torch_engine import torch_engine
from harness.plan.deepspeed_config import deepspeed_json
from harness.plan.plan import Plan
from harness.recipes.base import Recipe


def open_zero0(config: Config, plan: Plan, recipe: Recipe, *, cpu: bool) -> Engine:
    """The engine of one rank."""
    replica = open_replica(config, plan, recipe, cpu=cpu)
    return torch_engine(DeepSpeedAllReduce(replica, recipe), replica.layout)


@final
class DeepSpeedAllReduce(Gradients):
    """Gradients that DeepSpeed reduces after the last backward."""

    def __init__(self, replica: Replica, recipe: Recipe) -> None:
        process, plan, setup = replica.process, replica.plan, replica.setup
        super().__init__(process, plan, setup, replica.estimator, replica.fp16)
        unit, settings = open_unit(replica, recipe), deepspeed_json(plan, process.config.backend)
        self._carried = Carried(unit, process, replica.fp16)
        self._deepspeed = open_deepspeed(unit, setup.optimizer, settings, process.device)
        before_reduction(self._deepspeed, self._look)

    def _look(self) -> None:
        """DeepSpeed uses zero for the gradients that this rank does not have; after the first step they are reported."""
        if self.setup.unused.looking and self._deepspeed.is_gradient_accumulation_boundary():
            for name, p in self.setup.trained:
                if p.grad is None:
                    self.setup.unused.add(name)

    @override
    def run(self, micro: Micro, stop: float, last: bool) -> Sums:
        objective, sums = self._deepspeed(micro, stop, self.divide)
        accumulate(self._deepspeed, objective, last)
        return as_sums(sums)

    @override
    def reduce(self, grads: list[Tensor], local: Sums) -> tuple[Sums, Tensor, Number]:
        """The last backward has reduced everything: a mean over ranks, times the ranks, is the sum."""
        sums, divided = self._carried.take(local), self._carried.parts * self.divide
        self.unscale(sums[1])
        return sums, self.total(grads), ratio(divided, sums[1])
