"""A whole copy in one process alone: backend ddp where there is nobody to meet. No wrapper, and nothing on the device for ranks."""

import math
from typing import final

import torch
from torch import Tensor
from torch.autograd.graph import _engine_run_backward

from harness.engine.base import Sums
from harness.engine.copies import CopyEngine
from harness.engine.engine import autocast
from harness.engine.ledger import Number
from harness.engine.torch_step import ratio
from harness.parts.data import Micro
from harness.parts.recipe import Recipe
from harness.plan.config import Config
from harness.plan.plan import Plan


@final
class SoloEngine(CopyEngine):
    """One process: debugging, one GPU, or a world that is played."""

    def __init__(self, config: Config, plan: Plan, recipe: Recipe, *, cpu: bool) -> None:
        super().__init__(config, plan, recipe, cpu=cpu)
        self._autocast = autocast(config, self.device)
        self._whole = self._one_pass()
        self._begin = (math.nan, torch.zeros((), device=self.device))

    def adopt(self, plan: Plan) -> None:
        """See Engine.adopt."""
        super().adopt(plan)
        self._whole = self._one_pass()

    def _one_pass(self) -> bool:
        """Whether a step is one pass, so that its count is known before its backward."""
        return self.plan.passes == 1 and self._scaler is None

    def _pass(self, micro: Micro, stop: float, last: bool) -> Sums:
        """See BaseEngine._pass.

        Where a step is one pass the backward begins at 1 / count: nothing is left to normalise.
        """
        with self._autocast:
            total, counted = self._recipe.loss(self._model, micro.batch)
        if micro.chunk.ghost:
            total, counted = total * 0, 0
        count = counted.detach().to(self.dtype) if isinstance(counted, Tensor) else float(counted)
        if self._scaler:
            self._scaler.scale(total / self._divide).backward()  # type: ignore[no-untyped-call]
        elif self._whole:
            # backward(gradient) is this, after 20 us of checks of what is ours anyway
            _engine_run_backward((total,), (self._share(count, total),), False, False, (), True, True)
        else:
            total.backward()  # type: ignore[no-untyped-call]
        return total.detach(), count, stop

    def _share(self, count: Number, total: Tensor) -> Tensor:
        """1 / count, as a gradient of `total`; nan where the host sees that nothing was counted."""
        if isinstance(count, Tensor):
            return count.reciprocal().to(total.dtype)
        if self._begin[0] != count:
            share = torch.full((), 1 / count if count else math.nan, dtype=total.dtype, device=self.device)
            self._begin = (count, share)
        return self._begin[1]

    def _meet(self, grads: list[Tensor], local: Sums) -> tuple[Sums, Tensor, Number]:
        """See TorchEngine._meet."""
        divided = self._divide
        self._unscaled(local[1])
        return local, self._total(grads), 1.0 if self._whole else ratio(divided, local[1])
