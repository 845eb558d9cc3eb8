"""Backend ddp: one whole model per process; torch's DistributedDataParallel, set up by Accelerate, averages the gradients.

The step's loss, count and stop flag travel inside the gradient all-reduce, as the gradient of a three-element parameter: what the
ranks agree on costs no message of its own.
"""

import warnings
from contextlib import nullcontext
from typing import Any, final

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn

from harness.engine.base import TorchEngine, summed
from harness.engine.pieces import Source
from harness.parts.data import Micro
from harness.parts.optim import build_optimizer
from harness.parts.recipe import Recipe, seed_torch
from harness.plan.config import Config
from harness.plan.errors import UserError
from harness.plan.order import derive
from harness.plan.plan import Plan


class Unit(nn.Module):
    """What DDP wraps: model and loss in one forward, and the carrier whose gradient brings sums over all ranks."""

    def __init__(self, recipe: Recipe, model: nn.Module, config: Config, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.recipe, self.model, self.config = recipe, model, config
        self.carrier = nn.Parameter(torch.zeros(3, dtype=dtype, device=device))

    def forward(self, micro: Micro, stop: float) -> tuple[Tensor, Tensor]:
        """(scalar whose gradient is that of the summed loss and carries the sums, the sums [loss, count, stop])."""
        total, sums = summed(self.recipe, self.model, micro, stop, self.config, self.carrier.dtype)
        return total.to(self.carrier.dtype) + (self.carrier * sums).sum(), sums


@final
class DdpEngine(TorchEngine):
    """Data-parallel training with a whole model per process, or in one process alone."""

    def __init__(self, config: Config, plan: Plan, recipe: Recipe, *, cpu: bool) -> None:
        super().__init__(config, plan, cpu=cpu)
        seed_torch(derive(self.seed, 1))
        model = recipe.model().to(self.device, self.dtype)
        self.optimizer = recipe.optimizer(model, plan) or build_optimizer(plan, model, self.device)
        self._unit = Unit(recipe, model, config, self.dtype, self.device)
        self._wrapped: nn.Module = self._wrap(cpu) if self.processes > 1 else self._unit
        self._params = [p for p in model.parameters() if p.requires_grad]
        self._scaler = torch.amp.GradScaler(self.device.type) if config.precision == "fp16" else None

    def _wrap(self, cpu: bool) -> nn.Module:
        """The unit under DDP; anything else that Accelerate may give is refused."""
        options = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
        accelerator = Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=[options])
        with warnings.catch_warnings():
            # torch 2.13 renames broadcast_buffers; the older versions that we support know the old name only
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
            wrapped = accelerator.prepare_model(self._unit)
        if not isinstance(wrapped, nn.parallel.DistributedDataParallel):
            raise UserError("backend.name", f"ddp asked for, Accelerate gave {type(wrapped).__name__}", "check accelerate.yaml")
        return wrapped

    @property
    def model(self) -> nn.Module:
        """The recipe's own model, outside DDP."""
        return self._unit.model

    def _pass(self, micro: Micro, stop: float, last: bool) -> Tensor:
        """See TorchEngine._pass."""
        quiet: Any = nullcontext() if last or self.processes == 1 else self._wrapped.no_sync()  # type: ignore[operator]
        with quiet:
            objective, sums = self._wrapped(micro, stop)
            (self._scaler.scale(objective) if self._scaler else objective).backward()
        told: Tensor = sums
        return told

    def _grads(self) -> list[Tensor]:
        """See TorchEngine._grads."""
        return [p.grad for p in self._params if p.grad is not None]

    def _meet(self, grads: list[Tensor], local: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See TorchEngine._meet. The last backward has brought everything: DDP's mean over ranks, times the ranks, is the sum."""
        carried, self._unit.carrier.grad = self._unit.carrier.grad, None
        assert carried is not None  # noqa: S101  the backward above made it
        if self.processes > 1:
            if self._scaler:
                carried = carried / self._scaler.scale(torch.ones_like(carried))
            local = carried * self.processes
        if self._scaler:
            self._scaler.unscale_(self.optimizer)
        return local, nn.utils.get_total_norm(grads), torch.full_like(local[0], self.processes)

    def _move(self, good: Tensor) -> None:
        """See TorchEngine._move. In fp16 the scaler skips by itself, and lowers its scale."""
        if self._scaler is None:
            super()._move(good)
            return
        self._scaler.step(self.optimizer)
        self._scaler.update()

    def _tensors(self) -> dict[str, Tensor]:
        """See TorchEngine._tensors."""
        scale = {"scaler/scale": self._scaler.scale(torch.ones((), device=self.device))} if self._scaler else {}
        return super()._tensors() | scale

    def load(self, source: Source) -> None:
        """See Engine.load."""
        super().load(source)
        if self._scaler and "scaler/scale" in source:
            self._scaler.load_state_dict(self._scaler.state_dict() | {"scale": float(source.whole("scaler/scale"))})
