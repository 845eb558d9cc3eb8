"""Backends zero1, zero2, zero3: DeepSpeed holds optimizer state, gradients and weights in shards, and moves them itself.

DeepSpeed gives the mean over ranks of what each rank's backward gave, and divides by its loss scale before it clips and steps. So
the loss scale carries our normalisation: the gradient lies in its buffers `scale` times too large, with
scale = (loss scaling of fp16) x (global count of items) / (what we divided by before the backward) / (ranks).

A step that is not finite on any rank is made NaN before the last backward; DeepSpeed then skips it, on all ranks, as an overflow.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from harness.engine.base import BaseEngine, Sums, power_of_two, summed, told
from harness.engine.deepspeed import accumulate, open_deepspeed, override_loss_scale
from harness.engine.pieces import Piece, Source, share, whole
from harness.engine.shards import Shards, whole_shape
from harness.engine.swap import claim
from harness.parts.compute import prepare_model
from harness.parts.data import Micro
from harness.parts.optim import build_optimizer
from harness.parts.recipe import Recipe, seed_torch
from harness.plan.config import Config
from harness.plan.errors import UserError
from harness.plan.order import derive
from harness.plan.plan import Plan
from harness.plan.zero import deepspeed_json


class Unit(nn.Module):
    """What DeepSpeed wraps: model and loss in one forward."""

    def __init__(self, recipe: Recipe, model: nn.Module, config: Config) -> None:
        super().__init__()
        self.recipe, self.model, self.config = recipe, model, config

    def forward(self, micro: Micro, stop: float) -> tuple[Tensor, Tensor]:
        """(summed loss, the sums [loss, count, stop] as float64)."""
        return summed(self.recipe, self.model, micro, stop, self.config, torch.float64)


@final
class ZeroEngine(BaseEngine):
    """Data-parallel training by DeepSpeed with shards."""

    def __init__(self, config: Config, plan: Plan, recipe: Recipe, *, cpu: bool) -> None:
        super().__init__(config, plan, cpu=cpu)
        seed_torch(derive(self.seed, 1))
        model = prepare_model(recipe.model(), recipe, config.compute)
        _check_running(model, plan)
        fused = self.device.type == "cuda" or config.backend.offload != "none"  # torch's fused kernels are for host memory too
        inner = recipe.optimizer(model, plan) or build_optimizer(plan, recipe, model, fused=fused)
        initial = Source.of(
            Piece(f"model/{n}", tuple(p.shape), 0, p.detach().clone().flatten()) for n, p in model.named_parameters()
        )
        if config.backend.nvme_path is not None:
            claim(config.backend.nvme_path, self.rank)
            self.estimator = "none"  # the moments are not at hand
        self._unit = Unit(recipe, model, config)
        self._deepspeed = open_deepspeed(self._unit, inner, deepspeed_json(plan, config.backend), self.device)
        self._zero: Any = self._deepspeed.optimizer
        self.optimizer = self._zero.optimizer
        self._shards = Shards(model, self._zero, self.rank, self.processes)
        if plan.precision != "fp32":
            self._shards.load(initial)  # DeepSpeed made its float32 weights of rounded ones
        self._told = torch.zeros(3, dtype=torch.float64, device=self.device)
        self._expected = power_of_two(plan.global_batch)

    @property
    def model(self) -> nn.Module:
        """The recipe's own model; in zero3 its weights are gathered module by module as it runs."""
        return self._unit.model

    def parameters(self) -> int:
        """See Engine.parameters. zero3 leaves an empty tensor where a parameter was."""
        return sum(prod(whole_shape(p)) for p in self.model.parameters())

    def _pass(self, micro: Micro, stop: float, last: bool) -> Sums:
        """See BaseEngine._pass."""
        total, sums = self._deepspeed(micro, stop)
        self._told = self._told + sums
        if last:
            self._told = self.reduce(self._told)
            loss, count, _ = self._told
            total = total * (1 + 0 * loss + 0 * (count / count)).to(total)
        override_loss_scale(self._zero, self._fp16_scale())
        accumulate(self._deepspeed, total / self._expected, last)
        return told(sums)

    def _finish(self, local: Sums) -> Tensor:
        """See BaseEngine._finish. DeepSpeed asks the host whether a step overflowed, so this does too."""
        sums, self._told = self._told, torch.zeros_like(self._told)
        count = float(sums[1])
        override_loss_scale(self._zero, self._fp16_scale() * count / self._expected / self.processes)
        most = self._most()
        self._zero.clip_grad = most or 0.0
        self._deepspeed.step()
        norm = torch.as_tensor(self._deepspeed.get_global_grad_norm(), device=self.device, dtype=torch.float64)
        factor = torch.ones_like(norm) if most is None else (most / (norm + 1e-6)).clamp(max=1.0)
        bad = torch.tensor(float(self._zero.overflow), device=self.device)
        self._scale = self._fp16_scale()
        self._row(told(sums), norm, factor, bad)
        self.meters.syncs += 2  # the count above, and whether it overflowed
        self._expected = power_of_two(count)
        return bad

    def _held(self) -> list[tuple[str, int, Tensor]]:
        """See BaseEngine._held: the float32 slices."""
        return self._shards.held()

    def _copies(self) -> int:
        """See BaseEngine._copies."""
        return 1

    def _fp16_scale(self) -> float:
        """The loss scale that DeepSpeed searches for fp16; 1 in other precisions."""
        return float(self._zero.loss_scaler.cur_scale) if self.plan.precision == "fp16" else 1.0

    def pieces(self) -> list[Piece]:
        """See Engine.pieces."""
        scale = [whole("scaler/scale", torch.tensor(self._fp16_scale()))] if self.plan.precision == "fp16" else []
        return self._shards.pieces() + share(scale, self.rank, self.processes)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """See Engine.averaged."""
        raise NotImplementedError("zero1 to zero3 keep no average")  # the plan refuses it
        yield

    def load(self, source: Source) -> None:
        """See Engine.load."""
        self._shards.load(source)
        if self.plan.precision == "fp16" and "scaler/scale" in source:
            self._zero.loss_scaler.cur_scale = float(source.whole("scaler/scale"))


def _check_running(model: nn.Module, plan: Plan) -> None:
    """DeepSpeed casts buffers along with weights, and running statistics in 8 bits of mantissa stand still. Raises UserError."""
    if plan.precision != "fp32" and any(isinstance(m, _BatchNorm) and m.track_running_stats for m in model.modules()):
        at = f"is {plan.precision}, in which {plan.backend} would keep BatchNorm's running statistics too"
        raise UserError("precision", at, "use fp32, or backend.name: ddp or fsdp")
