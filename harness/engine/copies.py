"""Engines with a whole copy of model and optimizer in each process: what a process alone, ddp and zero0 share."""

from functools import cached_property

import torch
from torch import Tensor, nn

from harness.engine.base import Sums, power_of_two
from harness.engine.ledger import total_norm
from harness.engine.moved import View
from harness.engine.pieces import Source
from harness.engine.torch_step import TorchEngine, ratio
from harness.parts.compute import prepare_model
from harness.parts.optim import build_optimizer
from harness.parts.recipe import Recipe, seed_torch
from harness.plan.config import Config
from harness.plan.order import derive
from harness.plan.plan import Plan


class CopyEngine(TorchEngine):
    """A whole copy per process. A subclass runs the passes, and says how gradients meet."""

    def __init__(self, config: Config, plan: Plan, recipe: Recipe, *, cpu: bool) -> None:
        super().__init__(config, plan, cpu=cpu)
        seed_torch(derive(self.seed, 1))
        self._recipe = recipe
        self._model = prepare_model(recipe.model().to(self.device, self.dtype), recipe, config.compute)
        self.optimizer = recipe.optimizer(self._model, plan) or build_optimizer(plan, recipe, self._model, fused=True)
        self._params = [p for p in self._model.parameters() if p.requires_grad]
        self._keep_average()
        self._scaler = torch.amp.GradScaler(self.device.type) if config.precision == "fp16" else None
        self._divide = power_of_two(plan.global_batch) if self._scaler else 1.0
        if config.watch.noise_scale and plan.passes > 1 and self._scaler is None:
            self.estimator = "passes"

    @property
    def model(self) -> nn.Module:
        """The recipe's own model, outside all wrapping."""
        return self._model

    @cached_property
    def _held_views(self) -> list[View]:
        return super()._views()

    def _views(self) -> list[View]:
        """See BaseEngine._views. A copy's weights stay where they are."""
        return self._held_views

    def _after_first(self, told: Sums) -> None:
        """See BaseEngine._after_first. Nothing has met yet: this is the gradient of the first pass alone."""
        if self.estimator == "passes" and self.plan.passes > 1:
            self._small = (total_norm(self._grads()) * ratio(1.0, told[1])) ** 2

    def _grads(self) -> list[Tensor]:
        """See TorchEngine._grads."""
        return [p.grad for p in self._params if p.grad is not None]

    def _unscaled(self, count: Tensor | float) -> None:
        """In fp16: take the loss scale out of the gradients, which then are divided by `_divide`; choose that of the next step."""
        if self._scaler:
            self._scaler.unscale_(self.optimizer)
            self._divide = power_of_two(float(count))  # the scaler asks the host at every step anyway

    def _move(self, bad: Tensor) -> None:
        """See TorchEngine._move. In fp16 the scaler skips by itself, and lowers its scale."""
        if self._scaler is None:
            super()._move(bad)
            return
        self._scale = self._scaler.scale(torch.ones((), device=self.device))
        self._scaler.step(self.optimizer)
        self._scaler.update()

    def _tensors(self) -> dict[str, Tensor]:
        """See BaseEngine._tensors."""
        scale = {"scaler/scale": self._scaler.scale(torch.ones((), device=self.device))} if self._scaler else {}
        return super()._tensors() | scale

    def load(self, source: Source) -> None:
        """See Engine.load."""
        super().load(source)
        if self._scaler and "scaler/scale" in source:
            self._scaler.load_state_dict(self._scaler.state_dict() | {"scale": float(source.whole("scaler/scale"))})
