"""Backends zero1, zero2, zero3: DeepSpeed holds optimizer state, gradients and weights in shards, and moves them itself.

DeepSpeed gives the mean over ranks of what each rank's backward gave, and divides by its loss scale before it clips and steps. So
the loss scale carries our normalisation: the gradient lies in its buffers `scale` times too large, with
scale = (loss scaling of fp16) x (global count of items) / (what we divided by before the backward) / (ranks).

A step that is not finite on any rank is made NaN before the last backward; DeepSpeed then skips it, on all ranks, as an overflow.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from typing_extensions import override

from harness.checkpoint.tensor_slices import SliceReader, TensorSlice
from harness.config.errors import UserError
from harness.config.schema import Config
from harness.data.feed import Micro
from harness.engine.deepspeed import (
    accumulate,
    before_reduction,
    evaluate_first,
    loss_scale,
    open_deepspeed,
    override_loss_scale,
)
from harness.engine.device_scalars import on_device
from harness.engine.frozen import base_digests
from harness.engine.initial_model import initial_model
from harness.engine.interface import Engine, Estimator, Limit
from harness.engine.loss_scale import power_of_two
from harness.engine.loss_sums import LossSums
from harness.engine.model_setup import ModelSetup, set_up
from harness.engine.moment_noise import moments_estimator
from harness.engine.nvme_swap import claim
from harness.engine.param_names import persistent
from harness.engine.passes import Passes, Sums, as_sums
from harness.engine.process import Process, open_process
from harness.engine.step_owner import Row, StepOwner
from harness.engine.trained import listed
from harness.engine.training_engine import TrainingEngine
from harness.engine.zero_shards import ZeroState
from harness.engine.zero_uses import Uses
from harness.modeling.dtypes import cast_model
from harness.modeling.optimizer import open_optimizer
from harness.modeling.own_optimizer import TwoModes
from harness.modeling.prepare import prepare_model
from harness.plan.deepspeed_config import deepspeed_json
from harness.plan.plan import Plan
from harness.recipes.base import Recipe
from harness.recipes.contract import Loss

SENDABLE = frozenset(
    {torch.uint8, torch.int8, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64}
)
"""What gloo and NCCL both take."""


class Unit(nn.Module):
    """What DeepSpeed wraps: model and loss in one forward."""

    def __init__(self, recipe: Recipe, model: nn.Module, config: Config, device: torch.device) -> None:
        super().__init__()
        self.model = model
        self._sums = LossSums(Loss(recipe, whole=config.backend.name != "zero3"), config, torch.float64, device)

    def forward(self, micro: Micro, stop: float) -> tuple[Tensor, Tensor]:
        """(summed loss, the sums [loss, count, stop] as float64)."""
        return self._sums.of(self.model, micro, stop)


def open_zero(config: Config, plan: Plan, recipe: Recipe, *, cpu: bool) -> Engine:
    """The engine of one rank. Raises UserError if DeepSpeed cannot train this model so."""
    process = open_process(config, plan, cpu=cpu)
    model = initial_model(recipe, config.run.seed, config.init_from, partial=config.init_partial)
    digests = base_digests(model, recipe)
    model = prepare_model(cast_model(model, process.dtype), recipe, config.compute)
    _check_running(model, plan)
    _check_sendable(model, plan)
    fused = process.device.type == "cuda" or config.backend.offload != "none"  # torch's fused kernels are for host memory too
    inner = open_optimizer(plan, recipe, model, fused=fused)
    if isinstance(inner, TwoModes):
        at = f"is {plan.backend}, which cannot switch to {type(inner).__name__}'s evaluation weights"
        raise UserError("backend.name", at, "use backend.name: ddp, fsdp or zero0")
    initial = _copied(model)
    if config.backend.nvme_path is not None:
        claim(config.backend.nvme_path, process.rank)
    deepspeed = open_deepspeed(
        Unit(recipe, model, config, process.device), inner, deepspeed_json(plan, config.backend), process.device
    )
    setup = set_up(process, plan, model, deepspeed.optimizer.optimizer, digests, lambda p: vars(p).get("ds_tensor", p))
    on_disk = config.backend.nvme_path is not None  # the moments
    passes = ZeroPasses(process, plan, setup, "none" if on_disk else moments_estimator(plan, config, inner), deepspeed)
    state = ZeroState(process, setup, deepspeed.optimizer)
    if plan.precision != "fp32":
        state.load_weights(initial)  # DeepSpeed made its float32 weights of rounded ones
    if plan.backend == "zero3":
        evaluate_first(model)
    return TrainingEngine(passes, DeepSpeedStep(passes), state)


class ZeroPasses(Passes):
    """Passes whose gradients DeepSpeed reduces, each rank its slices."""

    def __init__(self, process: Process, plan: Plan, setup: ModelSetup, estimator: Estimator, deepspeed: Any) -> None:
        super().__init__(process, plan, setup, estimator)
        self.deepspeed, self.zero = deepspeed, deepspeed.optimizer
        self.uses = Uses(setup.trained, self.zero, plan.backend)
        before_reduction(deepspeed, self.uses.check)
        self.expected = power_of_two(plan.global_batch)
        """What losses are divided by before the backward: about the count of the step."""
        self._sums = torch.zeros(3, dtype=torch.float64, device=process.device)

    @override
    def run(self, micro: Micro, stop: float, last: bool) -> Sums:
        total, sums = self.deepspeed(micro, stop)
        self.backward(total, sums, last)
        return as_sums(sums)

    def backward(self, total: Tensor, sums: Tensor, last: bool) -> None:
        """Backward of a pass from its summed loss; `sums`: [loss, count, stop] as float64."""
        self._sums = self._sums + sums
        if last:
            self._sums = self.process.reduce(self._sums)
            total = total * (1 + 0 * self._sums[0]).to(total)
        override_loss_scale(self.zero, loss_scale(self.zero, self.plan.precision))
        self.uses.root = total
        accumulate(self.deepspeed, total / self.expected, last)

    @override
    def first_done(self, sums: Sums) -> None:
        """Nothing: no rank has a whole gradient."""

    def take(self) -> Tensor:
        """The step's sums [loss, count, stop] over all ranks, after its last pass; those of the next begin at 0."""
        sums, self._sums = self._sums, torch.zeros_like(self._sums)
        return sums


@final
class DeepSpeedStep(StepOwner):
    """DeepSpeed moves the weights."""

    def __init__(self, passes: ZeroPasses) -> None:
        super().__init__(passes.plan)
        self._passes, self._deepspeed, self._zero = passes, passes.deepspeed, passes.zero
        self._process, self._unused, self._meters = passes.process, passes.setup.unused, passes.setup.meters

    @override
    def loaded(self) -> None:
        """Nothing here follows from the state."""

    @override
    def finish(self, local: Sums, limit: Limit | None, *, close: bool) -> Row:
        """DeepSpeed asks the host whether a step overflowed, so this does too."""
        passes, device, precision = self._passes, self._process.device, self.plan.precision
        sums, uses = passes.take(), passes.uses
        uses.first, self._unused.names = False, uses.never or []
        count = float(sums[1])
        scale = loss_scale(self._zero, precision) * (count or 1.0) / passes.expected / self._process.ranks
        override_loss_scale(self._zero, scale)
        most = self.clip_norm(limit)
        self._zero.clip_grad = most or 0.0
        self.moving = True
        with nullcontext() if count else _held_still(self._zero.optimizer):
            self._deepspeed.step()
        norm = on_device(self._deepspeed.get_global_grad_norm(), device, torch.float64)
        factor = torch.ones_like(norm) if most is None else (most / (norm + 1e-6)).clamp(max=1.0)
        if not count:
            norm = norm * torch.nan
        bad = on_device(float(self._zero.overflow or not count), device, torch.float32)
        self._meters.syncs += 2  # two synchronisations: the count above, and DeepSpeed's overflow check
        passes.expected = power_of_two(count)
        return *as_sums(sums), norm, factor, bad, loss_scale(self._zero, precision)


def _copied(model: nn.Module) -> SliceReader:
    """The weights and buffers of a fresh model, as a checkpoint would have them."""
    fresh: dict[str, Tensor] = {n: p for n, p in model.named_parameters() if p.requires_grad} | persistent(model)
    return SliceReader.of(TensorSlice(f"model/{n}", tuple(t.shape), 0, t.detach().clone().flatten()) for n, t in fresh.items())


@contextmanager
def _held_still(optimizer: Optimizer) -> Iterator[None]:
    """Inside the context an optimizer's step changes nothing: for a step without counted items, which DeepSpeed takes with zero
    gradients."""
    vars(optimizer)["step"] = lambda *_: None
    try:
        yield
    finally:
        del vars(optimizer)["step"]


def _check_sendable(model: nn.Module, plan: Plan) -> None:
    """zero3 shards frozen weights too, and gathers them as they are. Raises UserError."""
    odd = [f"{name} ({p.dtype})" for name, p in model.named_parameters() if not p.requires_grad and p.dtype not in SENDABLE]
    if plan.backend == "zero3" and odd:
        at = f"is zero3, which must gather weights, and these have types that gloo and NCCL cannot send: {listed(odd)}"
        raise UserError("backend.name", at, "use backend.name: ddp, fsdp or zero2, or make them buffers")


def _check_running(model: nn.Module, plan: Plan) -> None:
    """DeepSpeed casts buffers to bf16 with the weights, in which running statistics stop changing. Raises UserError."""
    if plan.precision != "fp32" and any(isinstance(m, _BatchNorm) and m.track_running_stats for m in model.modules()):
        at = f"is {plan.precision}, in which {plan.backend} would keep BatchNorm's running statistics too"
        raise UserError("precision", at, "use fp32, or backend.name: ddp or fsdp")
