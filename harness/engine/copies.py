"""Engines with a whole copy of model and optimizer in each process: what ddp and zero0 share.

The step's loss, count and stop flag travel inside the gradient all-reduce, as the gradient of a three-element parameter: what the
ranks agree on costs no message of its own.
"""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from harness.engine.base import power_of_two, summed
from harness.engine.pieces import Source
from harness.engine.torch_step import TorchEngine
from harness.parts.compute import prepare_model
from harness.parts.data import Micro
from harness.parts.optim import build_optimizer
from harness.parts.recipe import Recipe, seed_torch
from harness.plan.config import Config
from harness.plan.order import derive
from harness.plan.plan import Plan


class Unit(nn.Module):
    """What is wrapped: model and loss in one forward, and the carrier whose gradient brings sums over all ranks."""

    def __init__(self, recipe: Recipe, model: nn.Module, config: Config, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.recipe, self.model, self.config = recipe, model, config
        self.carrier = nn.Parameter(torch.zeros(3, dtype=dtype, device=device))

    def forward(self, micro: Micro, stop: float, divide: float) -> tuple[Tensor, Tensor]:
        """(scalar whose gradient is that of the summed loss / `divide` and carries the sums, the sums [loss, count, stop])."""
        total, sums = summed(self.recipe, self.model, micro, stop, self.config, self.carrier.dtype)
        return total.to(self.carrier.dtype) / divide + (self.carrier * sums).sum(), sums


class CopyEngine(TorchEngine):
    """A whole copy per process. A subclass wraps `_unit` and runs its passes."""

    _rounds = False
    """Whether gradients are rounded on their way, so that counts cannot travel with them."""

    def __init__(self, config: Config, plan: Plan, recipe: Recipe, *, cpu: bool) -> None:
        super().__init__(config, plan, cpu=cpu)
        seed_torch(derive(self.seed, 1))
        model = prepare_model(recipe.model().to(self.device, self.dtype), recipe, config.compute)
        self.optimizer = recipe.optimizer(model, plan) or build_optimizer(plan, recipe, model, fused=self.device.type == "cuda")
        self._unit = Unit(recipe, model, config, self.dtype, self.device)
        self._params = [p for p in model.parameters() if p.requires_grad]
        self._scaler = torch.amp.GradScaler(self.device.type) if config.precision == "fp16" else None
        self._divide = power_of_two(plan.global_batch) if self._scaler else 1.0
        if config.watch.noise_scale and plan.passes > 1 and self._scaler is None:
            self.estimator = "passes"

    @property
    def model(self) -> nn.Module:
        """The recipe's own model, outside all wrapping."""
        return self._unit.model

    @abstractmethod
    def _pass(self, micro: Micro, stop: float, last: bool) -> Tensor:
        """See BaseEngine._pass. The last one leaves the mean over ranks in every gradient, the carrier's too."""

    def _after_first(self, told: Tensor) -> None:
        """See BaseEngine._after_first. Nothing has met yet: this is the gradient of the first pass alone."""
        if self.estimator == "passes" and self.plan.passes > 1:
            self._small = nn.utils.get_total_norm(self._grads()) ** 2 / told[1] ** 2

    def _grads(self) -> list[Tensor]:
        """See TorchEngine._grads."""
        return [p.grad for p in self._params if p.grad is not None]

    def _meet(self, grads: list[Tensor], local: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See TorchEngine._meet. The last backward has brought everything: the mean over ranks, times the ranks, is the sum."""
        carried, self._unit.carrier.grad = self._unit.carrier.grad, None
        assert carried is not None  # noqa: S101  the backward above made it
        if self.processes > 1 and self._rounds:
            local = self.reduce(local)
        elif self.processes > 1:
            if self._scaler:
                carried = carried / self._scaler.scale(torch.ones_like(carried))
            local = carried * self.processes
        divided = self.processes * self._divide
        if self._scaler:
            self._scaler.unscale_(self.optimizer)
            self._divide = power_of_two(float(local[1]))  # the scaler asks the host at every step anyway
        return local, nn.utils.get_total_norm(grads), torch.full_like(local[0], divided)

    def _move(self, good: Tensor) -> None:
        """See TorchEngine._move. In fp16 the scaler skips by itself, and lowers its scale."""
        if self._scaler is None:
            super()._move(good)
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
