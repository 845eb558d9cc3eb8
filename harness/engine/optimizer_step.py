"""The end of a step where torch's optimizer lies in this process: normalise, clip, skip or move. Used by ddp, fsdp and zero0."""

from functools import cached_property
from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from harness.config.errors import UserError
from harness.distributed.process_group import out_of_memory
from harness.engine.device_scalars import Number, norms
from harness.engine.fused_step import Step, bare_step, kernel_step, prepare_fused
from harness.engine.gradients import Gradients, is_one
from harness.engine.interface import Limit
from harness.engine.optimizer_state import of_torch
from harness.engine.passes import Sums
from harness.engine.state import State
from harness.engine.step_owner import Row, StepOwner
from harness.modeling.memory_layout import laid_out_as, same_layout


@final
class TorchStep(StepOwner):
    """Moves the weights by the gradients that `gradients` reduces; `state` says where the weights lie."""

    def __init__(self, gradients: Gradients, state: State) -> None:
        super().__init__(gradients.plan)
        setup = gradients.setup
        self._gradients, self._state, self._params = gradients, state, gradients.params
        self._optimizer, self._trained, self._unused, self._meters = setup.optimizer, setup.trained, setup.unused, setup.meters
        self._dtype, self._histograms = gradients.process.dtype, setup.histograms
        self._wanted = len(self._params)  # how many parameters should have a gradient
        self._unit_scale = torch.ones((), device=gradients.process.device)
        self._begun = False
        """Whether the optimizer has stepped since its state was made or loaded."""
        self._fused_step: Step
        self._fused = False
        """Whether the optimizer's kernels leave weights and moments alone where found_inf is 1, without asking the host."""
        self._offloaded_to: torch.device | None = None
        """The host device, if the optimizer's weights are offloaded to it while gradients are on the GPU; else None."""

    @override
    def loaded(self) -> None:
        self._begun = False

    @override
    def finish(self, local: Sums, limit: Limit | None, *, close: bool) -> Row:
        """Normalise, clip, and step or skip; numbers that the host knows cost no operation on the device."""
        grads = self._gradients.grads()
        if len(grads) < self._wanted:
            grads = self._filled()
        sums, norm, scale = self._gradients.reduce(grads, local)
        if close:
            self.grad_norms = self._each(grads, norm, scale)
            if self._histograms is not None:
                self._histograms.count("gradients", grads, scale)
        norm = norm if is_one(scale) else norm * scale
        most = self.clip_norm(limit)
        factor: Number = 1.0 if most is None else (norm + 1e-6).reciprocal_().mul_(most).clamp_(max=1.0)
        bad = self._bad(norm, sums[0])
        if limit is not None and limit.skip:
            spared = (bad == 0) & (norm > limit.norm)
            bad, factor = torch.where(spared, 1.0, bad), torch.where(spared, 0.0, factor)
        self._multiply(grads, factor if is_one(scale) else scale * factor)
        self._gradients.before_step(factor, bad)
        if self._begun:
            self.moving = True
            self._move(bad)
        else:
            self._begin_moving(bad)
        for parameter in self._params:
            parameter.grad = None
        return *sums, norm, factor, bad, self._gradients.scale

    def _multiply(self, grads: list[Tensor], change: Number) -> None:
        """All gradients times a factor, in place."""
        if isinstance(change, Tensor):
            torch._foreach_mul_(grads, change.to(grads[0].device, self._dtype))
        elif not is_one(change):
            torch._foreach_mul_(grads, change)

    def _filled(self) -> list[Tensor]:
        """The gradients, where some parameters have none: zero."""
        self._gradients.check_trained()
        for name, p in self._trained:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
                self._unused.add(name)
        return self._gradients.grads()

    def _each(self, grads: list[Tensor], norm: Tensor, scale: Number) -> Tensor:
        """The norm of each gradient of the mean: [parameters]."""
        each = norms(grads).to(norm.device) if self._gradients.own_norms is None else self._gradients.own_norms
        return each if is_one(scale) else each * scale

    def _bad(self, norm: Tensor, loss: Number) -> Tensor:
        """1 where one of these is not finite, else 0: float32 []. torch's own check for the loss scale, which is one kernel."""
        bad = torch.zeros((), device=norm.device)
        looked_at = [one for one in (norm, loss, self._gradients.start) if isinstance(one, Tensor)]
        torch._amp_foreach_non_finite_check_and_unscale_(looked_at, bad, self._unit_scale)
        return bad

    def _begin_moving(self, bad: Tensor) -> None:
        """The first `_move` with this optimizer state, which allocates the moments: if they do not fit, no weight may have
        changed."""
        fresh, before = not self._optimizer.state and of_torch(self._optimizer), self._lengths()
        self.moving = True
        try:
            self._fused = prepare_fused(self._optimizer)
            home = self._optimizer.param_groups[0]["params"][0].device
            self._offloaded_to = home if home != bad.device else None
            self._fused_step = bare_step(self._optimizer)
            self._move(bad)
            if self._fused:
                self._fused_step = kernel_step(self._optimizer, self._state.local)
        except Exception as e:
            if self.plan.backend == "fsdp" and not of_torch(self._optimizer) and not out_of_memory(e):
                at = f"is fsdp, and {type(self._optimizer).__name__} fails on its sharded tensors ({type(e).__name__}: {e})"
                raise UserError("backend.name", at, "use backend.name: ddp, or another optimizer") from e
            if fresh and torch.equal(before, self._lengths()):
                self._optimizer.state.clear()
                self.moving = False
            raise
        self._begun = True

    def _lengths(self) -> Tensor:
        """The norm of this rank's part of each parameter, which shows whether a step changed it: fused kernels leave no other
        trace."""
        return norms([self._state.local(p.detach()) for p in self._params])

    @cached_property
    def _restrided(self) -> list[nn.Parameter]:
        """Parameters whose gradients have other strides than they, in the first step: hooks of a recipe can cause this."""
        return [p for p in self._params if p.grad is not None and not same_layout(p.grad, p)]

    def _move(self, bad: Tensor) -> None:
        """The optimizer's own step, unless `bad` is 1."""
        for p in self._restrided:
            p.grad = None if p.grad is None else laid_out_as(p.grad, p)
        if self._fused:
            # torch would copy it to the host without waiting, and the kernel there might read it before it arrives
            self._fused_step(bad if self._offloaded_to is None else bad.to(self._offloaded_to))
        else:
            self._ask(bad)
        self._gradients.moved(bad)

    def _ask(self, bad: Tensor) -> None:
        """The step of an optimizer without fused kernels: the host must know `bad` to skip it, which synchronises with the
        device."""
        self._meters.syncs += 1
        if not bad:
            self._optimizer.step()
