"""The end of a step where torch's optimizer lies in this process: normalise, clip, skip or move. Shared by ddp, fsdp and zero0."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from inspect import unwrap
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from harness.engine.base import BaseEngine, Sums
from harness.engine.ledger import Number, norms
from harness.engine.names import persistent, weights
from harness.engine.pieces import Source


class TorchEngine(BaseEngine):
    """An engine that moves the weights itself. A subclass sets `optimizer` and `_params`, and says how gradients meet."""

    _params: list[nn.Parameter]
    _own_norms: Tensor | None = None

    @abstractmethod
    def _grads(self) -> list[Tensor]:
        """The gradients as plain tensors, or as this rank's parts of them."""

    @abstractmethod
    def _meet(self, grads: list[Tensor], local: Sums) -> tuple[Sums, Tensor, Number]:
        """(the sums over all ranks, the gradient's global norm, what makes it the mean's gradient when multiplied by).

        `local` holds this rank's sums. The norm is of the gradient as it lies in `grads`; both are the same on every rank.
        """

    def _keep_average(self) -> None:
        """Begin the average that the plan asks for; to call once the model lies as it will."""
        if self.plan.ema is not None:
            from harness.engine.average import Average  # it brings the tensors of shards, half a CPU second

            self.average = Average(self.model, persistent(self.model))

    def _settle(self) -> None:
        """Put the weights where they are kept, if a pass has left them elsewhere."""

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """See Engine.averaged."""
        assert self.average is not None  # noqa: S101  the plan has one
        self._settle()
        self.average.swap()
        try:
            yield
        finally:
            self._settle()
            self.average.swap()

    def sync_buffers(self) -> None:
        """See Engine.sync_buffers."""
        super().sync_buffers()
        if self.average is not None:
            self.average.sync(self.processes)

    def _tensors(self) -> dict[str, Tensor]:
        """See BaseEngine._tensors."""
        return super()._tensors() | {f"ema/{name}": kept for name, kept in self.average or ()}

    def load(self, source: Source) -> None:
        """See Engine.load. Where the checkpoint has no average, it begins at the checkpoint's weights."""
        super().load(source)
        if self.average is not None:
            self.average.begin()
            live = weights(self.model)
            with torch.no_grad():
                for name, kept in self.average:
                    if f"ema/{name}" in source:
                        kept.copy_(self._read(source, f"ema/{name}", live[name]))

    def _finish(self, local: Sums) -> Tensor:
        """See BaseEngine._finish. A number that the host knows costs no operation on the device."""
        grads = self._grads()
        sums, norm, scale = self._meet(grads, local)
        if self._closing:
            self._grad_norms = self._each(grads, norm, scale) if len(grads) == len(self._params) else None
        norm = norm if _one(scale) else norm * scale
        most = self._most()
        factor: Number = 1.0 if most is None else (norm + 1e-6).reciprocal_().mul_(most).clamp_(max=1.0)
        bad = self._bad(norm, sums[0])
        if self._limit is not None and self._limit.skip:
            spared = (bad == 0) & (norm > self._limit.norm)
            bad, factor = torch.where(spared, 1.0, bad), torch.where(spared, 0.0, factor)
        change = factor if _one(scale) else scale * factor
        if isinstance(change, Tensor):
            torch._foreach_mul_(grads, change.to(grads[0].device, self.dtype))
        elif not _one(change):
            torch._foreach_mul_(grads, change)
        self._row(sums, norm, factor, bad)
        self._move(bad)
        for parameter in self._params:
            parameter.grad = None
        return bad

    def _total(self, grads: list[Tensor]) -> Tensor:
        """The norm of the gradients as one vector; each one's own is kept for `_each`."""
        self._own_norms = norms(grads)
        norm: Tensor = torch.linalg.vector_norm(self._own_norms)
        return norm

    def _each(self, grads: list[Tensor], norm: Tensor, scale: Number) -> Tensor:
        """The norm of each gradient of the mean: [parameters]."""
        each = norms(grads).to(norm.device) if self._own_norms is None else self._own_norms
        return each if _one(scale) else each * scale

    def _bad(self, norm: Tensor, loss: Number) -> Tensor:
        """1 where one of both is not finite, else 0: float32 []. torch's own check for the loss scale, which is one kernel."""
        bad = torch.zeros((), device=norm.device)
        looked_at = [norm, loss] if isinstance(loss, Tensor) else [norm]
        torch._amp_foreach_non_finite_check_and_unscale_(looked_at, bad, self._unit_scale)
        return bad

    @cached_property
    def _unit_scale(self) -> Tensor:
        return torch.ones((), device=self.device)

    @cached_property
    def _fused(self) -> bool:
        """Whether the optimizer's kernels leave weights and moments alone where found_inf is 1, without asking the host."""
        return prepare_fused(self.optimizer)

    @cached_property
    def _bare_step(self) -> Callable[[], Any]:
        return bare_step(self.optimizer)

    def _move(self, bad: Tensor) -> None:
        """The optimizer's own step, unless `bad` ([], the same on every rank) is 1."""
        if self._fused:
            self.optimizer.found_inf = bad  # type: ignore[attr-defined]
            self._bare_step()
            return
        self.meters.syncs += 1  # on a GPU this waits for the device: optimizers that torch does not fuse have no other way to skip
        if not bad:
            self.optimizer.step()


def prepare_fused(optimizer: Optimizer) -> bool:
    """Whether all of an optimizer's groups are fused; made safe against a first step that is skipped.

    torch 2.13 makes SGD's momentum buffers without writing to them and lets the first kernel fill them in; one that skips leaves
    them as they are, and the second step takes what lay in memory for momentum. Zeros give the same first step.
    """
    fused = all(group.get("fused") for group in optimizer.param_groups)
    if fused and isinstance(optimizer, SGD):
        for group in optimizer.param_groups:
            for parameter in group["params"] if group["momentum"] and not group["dampening"] else ():
                optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
    return fused


def bare_step(optimizer: Optimizer) -> Callable[[], Any]:
    """The step of one of torch's own optimizers without what torch wraps around it; that of others, or with hooks, as it is.

    The wrappers look for hooks, break graphs that are not compiled, and open a range for the profiler, at every step.
    """
    own = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    hooks = (*own, _global_optimizer_pre_hooks, _global_optimizer_post_hooks)
    if not type(optimizer).__module__.startswith("torch.optim") or any(hooks):
        return optimizer.step
    bare = unwrap(type(optimizer).step)

    def step() -> None:
        with torch.no_grad():  # as a decorator it would be made anew at every call, by way of more calls
            bare(optimizer)

    return step


def _one(number: Number) -> bool:
    return isinstance(number, float) and number == 1.0


def ratio(divided: float, count: Number) -> Number:
    """`divided` / `count`; nan where the host sees that nothing was counted, as a tensor would give something not finite."""
    return divided / count if isinstance(count, Tensor) or count else math.nan
