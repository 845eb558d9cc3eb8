"""Backend ddp: one whole model per process; torch's DistributedDataParallel, set up by Accelerate, averages the gradients.

The step's loss, count and stop flag travel inside the gradient all-reduce, as the gradient of a three-element parameter: what the
ranks agree on costs no message of its own.
"""

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, final

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn

from harness.engine.engine import COLUMNS, DTYPES, Engine, StepRow, autocast
from harness.engine.names import load_optimizer, name_optimizer
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
        self.recipe, self.model = recipe, model
        self.config, self.device = config, device
        self.carrier = nn.Parameter(torch.zeros(3, dtype=dtype, device=device))

    def forward(self, micro: Micro, stop: float) -> tuple[Tensor, Tensor]:
        """(scalar whose gradient is that of the summed loss and carries the sums, the sums [loss, count, stop])."""
        with autocast(self.config, self.device):
            total, count = self.recipe.loss(self.model, micro.batch)
        sums = torch.stack(
            [
                total.detach().to(self.carrier.dtype),
                torch.as_tensor(count, device=self.device).to(self.carrier.dtype),
                torch.full((), stop, dtype=self.carrier.dtype, device=self.device),
            ]
        )
        if micro.chunk.ghost:
            total, sums = total * 0, sums * torch.tensor([0, 0, 1], dtype=sums.dtype, device=self.device)
        return total.to(self.carrier.dtype) + (self.carrier * sums).sum(), sums


@final
class DdpEngine(Engine):
    """Data-parallel training with a whole model per process, or in one process alone."""

    def __init__(self, config: Config, plan: Plan, recipe: Recipe, *, cpu: bool) -> None:
        options = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
        self.accelerator = Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=[options])
        self.device = self.accelerator.device
        self.rank, self.processes = self.accelerator.process_index, self.accelerator.num_processes
        if self.processes != plan.processes:
            at = f"the plan is for {plan.processes} processes, here are {self.processes}"
            raise UserError("world", at, "start as many as the plan says, or plan for what is here")
        self.plan, self.dtype, self.seed = plan, DTYPES[config.precision], config.run.seed
        seed_torch(derive(self.seed, 1))
        model = recipe.model().to(self.device, self.dtype)
        self.optimizer = recipe.optimizer(model, plan) or build_optimizer(plan, model, self.device)
        self._unit = Unit(recipe, model, config, self.dtype, self.device)
        self._wrapped: nn.Module = self._wrap() if self.processes > 1 else self._unit
        self._params = [p for p in model.parameters() if p.requires_grad]
        self._scaler = torch.amp.GradScaler(self.device.type) if config.precision == "fp16" else None
        self._fused = all(g.get("fused") for g in self.optimizer.param_groups)
        self._rows = torch.zeros(config.watch.every_steps, len(COLUMNS), dtype=torch.float64, device=self.device)
        self._filled = 0

    def _wrap(self) -> nn.Module:
        """The unit under DDP; anything else that Accelerate may give is refused."""
        with warnings.catch_warnings():
            # torch 2.13 renames broadcast_buffers; the older versions that we support know the old name only
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
            wrapped = self.accelerator.prepare_model(self._unit)
        if not isinstance(wrapped, nn.parallel.DistributedDataParallel):
            raise UserError("backend.name", f"ddp asked for, Accelerate gave {type(wrapped).__name__}", "check accelerate.yaml")
        return wrapped

    @property
    def model(self) -> nn.Module:
        """The recipe's own model, outside DDP."""
        return self._unit.model

    def step(self, micros: Sequence[Micro], lr: float, stop: bool) -> None:
        """See Engine.step."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self._unit.train()
        sums = self._backward(micros, float(stop) / len(micros))
        grads = [p.grad for p in self._params if p.grad is not None]
        self._update(grads, sums)
        self.optimizer.zero_grad(set_to_none=True)
        self._unit.carrier.grad = None

    def _backward(self, micros: Sequence[Micro], stop: float) -> Tensor:
        """All passes of this rank; gradients meet in the last one. Returns the sums [loss, count, stop] over all ranks."""
        local = torch.zeros_like(self._unit.carrier)
        for number, micro in enumerate(micros):
            seed_torch(derive(self.seed, 2, micro.chunk.start))
            last = number == len(micros) - 1
            quiet: Any = nullcontext() if last or self.processes == 1 else self._wrapped.no_sync()  # type: ignore[operator]
            with quiet:
                objective, sums = self._wrapped(micro, stop)
                (self._scaler.scale(objective) if self._scaler else objective).backward()
            local += sums
        if self.processes == 1:
            return local
        carried = self._unit.carrier.grad
        assert carried is not None  # noqa: S101  the backward above made it
        if self._scaler:
            carried = carried / self._scaler.scale(torch.ones_like(carried))
        return carried * self.processes

    def _update(self, grads: list[Tensor], sums: Tensor) -> None:
        """Normalise by the global count, clip, and move the weights if everything is finite. One row is written, none read."""
        if self._scaler:
            self._scaler.unscale_(self.optimizer)
        scale = self.processes / sums[1]
        norm = nn.utils.get_total_norm(grads) * scale
        factor = torch.ones_like(norm) if self.plan.clip is None else (self.plan.clip / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(grads, scale * factor)
        good = torch.isfinite(norm) & torch.isfinite(sums[0])
        self._rows[self._filled] = torch.stack([*sums, norm, factor, good.to(sums.dtype)])
        self._filled += 1
        if self._scaler:
            self._scaler.step(self.optimizer)
            self._scaler.update()
        elif self._fused:
            # torch's fused kernels leave weights and moments alone where found_inf is 1, without asking the host
            self.optimizer.found_inf = (~good).float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif good:  # on a GPU this waits for the device: optimizers that torch does not fuse have no other way to skip
            self.optimizer.step()

    def read(self) -> list[StepRow]:
        """See Engine.read."""
        rows = self._rows[: self._filled].tolist()
        self._filled = 0
        return [StepRow(*row) for row in rows]

    def sync_buffers(self) -> None:
        """See Engine.sync_buffers."""
        if self.processes > 1:
            for buffer in self.model.buffers():
                if buffer.is_floating_point():
                    dist.all_reduce(buffer)
                    buffer /= self.processes

    def reduce(self, sums: Tensor) -> Tensor:
        """See Engine.reduce."""
        if self.processes > 1:
            dist.all_reduce(sums)
        return sums

    def any_rank(self, flag: bool) -> bool:
        """See Engine.any_rank."""
        return bool(self.reduce(torch.tensor(float(flag), device=self.device)) > 0)

    def barrier(self) -> None:
        """See Engine.barrier."""
        self.accelerator.wait_for_everyone()

    def export_state(self) -> dict[str, Tensor]:
        """See Engine.export_state."""
        tensors = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"optimizer/{name}": value for name, value in name_optimizer(self.model, self.optimizer).items()}
        if self._scaler:
            tensors["scaler/scale"] = self._scaler.scale(torch.ones((), device=self.device))
        return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}

    def import_state(self, tensors: dict[str, Tensor]) -> None:
        """See Engine.import_state."""
        weights = {k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")}
        try:
            self.model.load_state_dict(weights)
        except RuntimeError as e:
            at = "the checkpoint's weights do not fit this model: " + str(e).split("\n")[1].strip()
            raise UserError("recipe", at, "use the recipe and knobs it was trained with, or another run.dir") from e
        load_optimizer(
            self.model,
            self.optimizer,
            {k.removeprefix("optimizer/"): v for k, v in tensors.items() if k.startswith("optimizer/")},
        )
        if self._scaler and "scaler/scale" in tensors:
            self._scaler.load_state_dict(self._scaler.state_dict() | {"scale": float(tensors["scaler/scale"])})
