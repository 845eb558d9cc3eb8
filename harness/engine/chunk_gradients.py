"""Adam's second moment from the gradients of chunks: each pass's mean gradient is squared, then the squares are averaged.

A chunk is a fixed part of the sample order, so the second moment is the same on any number of ranks and at any global batch
(Wang & Aitchison 2024, arXiv 2402.18824). For backend ddp and one process: gradients and squares are reduced after the last pass.
"""

from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor
from torch.optim import Adam
from typing_extensions import override

from harness.config.errors import UserError
from harness.config.schema import Config
from harness.data.feed import Micro
from harness.engine.device_scalars import Number, on_device, total_norm
from harness.engine.gradients import Gradients, is_one, ratio
from harness.engine.interface import Engine
from harness.engine.loss_sums import LossSums
from harness.engine.passes import Sums, as_sums
from harness.engine.replicated import Replica, open_replica
from harness.engine.torch_engine import torch_engine
from harness.plan.plan import Plan
from harness.recipes.base import Recipe
from harness.recipes.contract import Loss


def open_chunks(config: Config, plan: Plan, recipe: Recipe, *, cpu: bool) -> Engine:
    """The engine of a rank whose Adam takes squares of chunks. Raises UserError if the recipe's own optimizer is no Adam."""
    replica = open_replica(config, plan, recipe, cpu=cpu)
    optimizer = replica.setup.optimizer
    if not isinstance(optimizer, Adam):
        at = f"is chunks, but the recipe's optimizer() gives {type(optimizer).__name__}"
        raise UserError("optim.second_moment", at, "leave it out, or give torch's Adam or AdamW")
    return torch_engine(ChunkGradients(replica, recipe, optimizer), replica.layout)


@final
class ChunkGradients(Gradients):
    """With g_j the mean gradient of chunk j and w_j its share of the step's items, Adam gets g = sum w_j g_j, and in the place of
    g^2 the sum of w_j g_j^2.

    torch's own step adds (1 - beta2) g^2 to the second moment. So before it the rest is added: (1 - beta2)/beta2 of the variance
    between chunks, sum w_j g_j^2 - g^2, which is not negative.
    """

    def __init__(self, replica: Replica, recipe: Recipe, optimizer: Adam) -> None:
        super().__init__(replica.process, replica.plan, replica.setup, replica.estimator)
        process = replica.process
        self._sums = LossSums(Loss(recipe), process.config, process.dtype, process.device)
        self._optimizer = optimizer
        self._added: list[Tensor] = []
        self._squares: list[Tensor] = []
        self._reached: set[str] = set()

    @override
    def run(self, micro: Micro, stop: float, last: bool) -> Sums:
        total, sums = self._sums.of(self.setup.model, micro, stop)
        total.backward()  # type: ignore[no-untyped-call]
        count = sums[1]
        self._add([self._taken(name, p) for name, p in self.setup.trained], torch.where(count > 0, count, 1.0))
        if last:
            for (name, p), added in zip(self.setup.trained, self._added, strict=True):
                p.grad = added
                if name not in self._reached:
                    self.setup.unused.add(name)
        return as_sums(sums)

    def _taken(self, name: str, p: Tensor) -> Tensor:
        """The gradient of this pass alone; zero where the pass has not used the parameter."""
        grad, p.grad = p.grad, None
        if grad is None:
            return torch.zeros_like(p)
        self._reached.add(name)
        return grad

    def _add(self, grads: list[Tensor], count: Tensor) -> None:
        """Add the summed gradients of a chunk of `count` items, and their squares / count: count x the square of the mean."""
        squares = torch._foreach_mul(grads, grads)
        torch._foreach_div_(squares, count)
        if not self._added:
            self._added, self._squares = grads, list(squares)
            return
        torch._foreach_add_(self._added, grads)
        torch._foreach_add_(self._squares, squares)

    @override
    def first_done(self, sums: Sums) -> None:
        if self.estimator == "passes" and self.plan.passes > 1:
            self.small = total_norm(self._added) ** 2, sums[1]

    @override
    def reduce(self, grads: list[Tensor], local: Sums) -> tuple[Sums, Tensor, Number]:
        sums = local
        if self.process.ranks > 1:
            carried = torch.stack([on_device(part, self.process.device, self.process.dtype) for part in local])
            for tensors in _alike([*grads, *self._squares, carried]):
                flat = self.process.reduce(torch.cat([t.reshape(-1) for t in tensors]))
                for tensor, part in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
                    tensor.copy_(part.view_as(tensor))
            sums = as_sums(carried)
        torch._foreach_div_(self._squares, sums[1])
        return sums, self.total(grads), ratio(1.0, sums[1])

    @override
    def before_step(self, clipped: Number, bad: Tensor) -> None:
        """Bring the variance between chunks into the second moments, at the factor by which the gradients were clipped."""
        squares, self._squares, self._added, self._reached = self._squares, [], [], set()
        if not is_one(clipped):
            torch._foreach_mul_(squares, clipped * clipped)
        of = dict(zip(map(id, self.params), squares, strict=True))
        for group in self._optimizer.param_groups:
            beta2 = float(group["betas"][1])
            for p in group["params"]:
                variance = of[id(p)].addcmul_(p.grad, p.grad, value=-1)
                moment = self._moment(p, fused=bool(group["fused"]))
                moment.add_(torch.where(bad == 0, variance, 0.0), alpha=(1 - beta2) / beta2)

    def _moment(self, p: Tensor, *, fused: bool) -> Tensor:
        """The second moment of a parameter; torch's Adam makes its state in its first step, and this comes before."""
        state = self._optimizer.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=p.device if fused else None)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        moment: Tensor = state["exp_avg_sq"]
        return moment

    @override
    def forget(self) -> None:
        super().forget()
        self._added, self._squares, self._reached = [], [], set()


def _alike(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors by type, each of which is one message."""
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tensor)
    yield from by_type.values()
