"""Backend zero0: a whole copy per process, as ddp, with DeepSpeed averaging the gradients. The step itself is ours."""

from typing import final

from harness.engine.base import Sums, told
from harness.engine.carried import CarriedEngine
from harness.engine.deepspeed import accumulate, open_deepspeed
from harness.parts.data import Micro
from harness.parts.recipe import Recipe
from harness.plan.config import Config
from harness.plan.plan import Plan
from harness.plan.zero import deepspeed_json


@final
class Zero0Engine(CarriedEngine):
    """Data-parallel training by DeepSpeed without shards."""

    def __init__(self, config: Config, plan: Plan, recipe: Recipe, *, cpu: bool) -> None:
        super().__init__(config, plan, recipe, cpu=cpu)
        self._deepspeed = open_deepspeed(self._unit, self.optimizer, deepspeed_json(plan, config.backend), self.device)

    def _pass(self, micro: Micro, stop: float, last: bool) -> Sums:
        """See BaseEngine._pass."""
        objective, sums = self._deepspeed(micro, stop, self._divide)
        accumulate(self._deepspeed, objective, last)
        return told(sums)
