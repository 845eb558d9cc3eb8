"""The step of torch's fused optimizers: one kernel for each group, which moves nothing where the device says so.

torch's own step looks at every parameter's state in Python and sorts tensors by device and type before it calls the kernel. That is
the same at each step: here it is done once. The calls are those of torch.optim.adam._fused_adam and torch.optim.sgd._fused_sgd.
"""

from collections.abc import Callable
from inspect import unwrap
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from harness.engine.optimizer_state import of_torch

Local = Callable[[Tensor], Tensor]
"""What of a tensor lies on this rank."""
Step = Callable[[Tensor], None]
"""Takes a step, but moves nothing where its argument, [], is 1."""


def prepare_fused(optimizer: Optimizer) -> bool:
    """Whether all of an optimizer's groups are fused and can skip; made safe against a first step that is skipped.

    torch 2.13 makes SGD's momentum buffers without writing to them and lets the first kernel fill them in; one that skips leaves
    them as they are, and the second step takes what lay in memory for momentum. Zeros give the same first step, but not with
    dampening: there the host must be asked.
    """
    if not all(group.get("fused") for group in optimizer.param_groups):
        return False
    if not isinstance(optimizer, SGD):
        return True
    momentum = [group for group in optimizer.param_groups if group["momentum"]]
    if any(group["dampening"] for group in momentum):
        return False
    for parameter in (p for group in momentum for p in group["params"]):
        optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
    return True


def bare_step(optimizer: Optimizer) -> Step:
    """The step of one of torch's own optimizers without what torch wraps around it; that of others, or with hooks, as it is.

    The wrappers look for hooks, break graphs that are not compiled, and open a range for the profiler, at every step.
    """
    bare = None if _hooked(optimizer) or not of_torch(optimizer) else unwrap(type(optimizer).step)

    def step(found_inf: Tensor) -> None:
        optimizer.found_inf = found_inf  # type: ignore[attr-defined]
        if bare is None:
            optimizer.step()
            return
        with torch.no_grad():  # cheaper than the decorator, which makes a new context at every call too
            bare(optimizer)

    return step


def kernel_step(optimizer: Optimizer, local: Local) -> Step:
    """As `bare_step`, for an optimizer whose state exists: by the kernels alone, where they are known and no hook is to be called.

    State that is put in other tensors later is not seen: make the step again then.
    """
    bare = bare_step(optimizer)
    if _hooked(optimizer) or type(optimizer) not in _KERNELS or not all(map(_alike, optimizer.param_groups)):
        return bare
    kernels = [_KERNELS[type(optimizer)](optimizer, group, local) for group in optimizer.param_groups if group["params"]]

    def step(found_inf: Tensor) -> None:
        for kernel in kernels:
            if not kernel.ready():
                bare(found_inf)
                return
        with torch.no_grad():
            for kernel in kernels:
                kernel.step(found_inf)

    return step


def _hooked(optimizer: Optimizer) -> bool:
    own = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    return any((*own, _global_optimizer_pre_hooks, _global_optimizer_post_hooks))


def _alike(group: dict[str, Any]) -> bool:
    """Whether one call of the kernel can take a whole group."""
    return len({(p.device, p.dtype) for p in group["params"]}) <= 1 and not isinstance(group["lr"], Tensor)


class _Kernel:
    """One group's parameters, and what of them and of their gradients lies on this rank."""

    def __init__(self, optimizer: Optimizer, group: dict[str, Any], local: Local) -> None:
        self.group, self.local = group, local
        self.params: list[nn.Parameter] = group["params"]
        self.states = [optimizer.state[p] for p in self.params]
        self.grads: list[Tensor] = []

    def ready(self) -> bool:
        """Take up the gradients: False if a parameter has none, which torch's own step leaves out."""
        grads = [p.grad for p in self.params if p.grad is not None]
        self.grads = grads
        return len(grads) == len(self.params)

    def kept(self, key: str) -> list[Tensor]:
        """One tensor of each parameter's state."""
        return [self.local(state[key]) for state in self.states if key in state]

    def tensors(self) -> tuple[list[Tensor], list[Tensor]]:
        """(weights, gradients), which are let go."""
        grads, self.grads = self.grads, []
        local = self.local
        return [local(p) for p in self.params], [local(g) for g in grads]


@final
class _AdamKernel(_Kernel):
    def __init__(self, optimizer: Optimizer, group: dict[str, Any], local: Local) -> None:
        super().__init__(optimizer, group, local)
        self.moments = self.kept("exp_avg"), self.kept("exp_avg_sq"), self.kept("max_exp_avg_sq")
        self.steps = self.kept("step")
        self.kernel = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_

    def step(self, found_inf: Tensor) -> None:
        group, steps = self.group, self.steps
        beta1, beta2 = group["betas"]
        torch._foreach_add_(steps, 1)
        self.kernel(
            *self.tensors(),
            *self.moments,
            steps,
            amsgrad=group["amsgrad"],
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
            found_inf=found_inf,
        )
        torch._foreach_sub_(steps, [found_inf] * len(steps))


@final
class _SgdKernel(_Kernel):
    def __init__(self, optimizer: Optimizer, group: dict[str, Any], local: Local) -> None:
        super().__init__(optimizer, group, local)
        self.momentum = self.kept("momentum_buffer") if group["momentum"] else []

    def step(self, found_inf: Tensor) -> None:
        group = self.group
        torch._fused_sgd_(
            *self.tensors(),
            self.momentum,
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
            is_first_step=False,
            found_inf=found_inf,
        )


_KERNELS: dict[type[Optimizer], type[_AdamKernel | _SgdKernel]] = {Adam: _AdamKernel, AdamW: _AdamKernel, SGD: _SgdKernel}
