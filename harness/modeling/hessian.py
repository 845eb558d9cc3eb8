"""Sharpness: the largest eigenvalue of the loss's Hessian, by power iteration with exact Hessian-vector products.

Large batches tend to sharper minima, which generalise less well (Keskar et al. 2017, 1609.04836). Full-batch descent at rate lr
hovers where it is 2 / lr (Cohen et al. 2021, 2103.00065).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

MOST = 30
"""The most Hessian-vector products."""
NEAR = 1e-3
"""The iteration ends once the estimate changes by less than this share."""


def largest_eigenvalue(
    losses: Sequence[Callable[[], Tensor]], params: Sequence[Tensor], total: Callable[[Tensor], Tensor]
) -> float:
    """The eigenvalue of largest size, with its sign, of the Hessian of a sum of scalar losses; NaN if that is not finite.

    `losses` give this rank's terms. `total` sums a tensor over all ranks, so that every rank goes through the same steps and has
    the same result (Pearlmutter 1994 for the products).
    """
    draw = torch.Generator().manual_seed(0)
    v = torch.cat([torch.randn(p.numel(), generator=draw, dtype=torch.float64) for p in params]).to(params[0])
    v /= v.norm()
    value = float("inf")
    for _ in range(MOST):
        product = total(_product(losses, params, v))
        before, value = value, float(v @ product)
        size = product.norm()
        if not size > 0 or abs(value - before) <= NEAR * abs(value):
            break
        v = product / size
    return value


def _product(losses: Sequence[Callable[[], Tensor]], params: Sequence[Tensor], v: Tensor) -> Tensor:
    """This rank's share of the Hessian times v: [numbers of all params]."""
    out = torch.zeros_like(v)
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        for loss in losses:
            grads = torch.autograd.grad(loss(), params, create_graph=True, materialize_grads=True)
            slope = torch.cat([g.reshape(-1) for g in grads]) @ v
            if slope.requires_grad:
                second = torch.autograd.grad(slope, params, materialize_grads=True)
                out += torch.cat([s.reshape(-1) for s in second])
    return out
