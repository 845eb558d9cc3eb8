"""Mixup (Zhang et al. 2018, 1710.09412) for any recipe of float inputs with class labels, the same on every layout of GPUs.

A recipe with `augments = True` finds in each batch the `key` that the shares are drawn from.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from harness.recipes.sample_random import uniform

RADIUS, ANGLE = 4, 5
"""Purposes of the random numbers."""


def mixed_loss(
    key: Tensor,
    alpha: float,
    x: Tensor,
    label: Tensor,
    model: Callable[[Tensor], Tensor],
    loss: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """The summed loss of inputs x [n, ...] that are mixed with their neighbours in the micro-batch: a scalar.

    `label` and `key` int64 [n]; `model` gives logits of mixed inputs, `loss` that of each sample, [n], from logits and labels.
    """
    share = symmetric_beta(key, alpha).to(x.dtype)
    logits = model(mix(x, share))
    return (share * loss(logits, label) + (1 - share) * loss(logits, partner(label))).sum()


def symmetric_beta(key: Tensor, alpha: float) -> Tensor:
    """One draw of Beta(alpha, alpha) per sample: float64 [n] in [0, 1], from `key` int64 [n]; any alpha > 0.

    From Student's t with 2 alpha degrees of freedom, itself drawn in polar form (Bailey 1994, Math. Comp. 62, p. 779):
    t / sqrt(2 alpha + t^2) = 2 beta - 1. No rejection, so two numbers per sample are enough. Written with
    w = u^(1/alpha), which may reach 0 but never overflows.
    """
    u = uniform(key, RADIUS).double() + 2.0**-25
    w = u ** (1 / alpha)
    cosine = torch.cos(2 * math.pi * uniform(key, ANGLE).double())
    half = 0.5 * cosine * ((1 - w) / (w + (1 - w) * cosine**2)).sqrt()
    return (0.5 + half).clamp(0, 1)


def partner(x: Tensor) -> Tensor:
    """Mixup's other sample for each of x [n, ...]: the one before it in the micro-batch, which is shuffled already."""
    return x.roll(1, 0)


def mix(x: Tensor, share: Tensor) -> Tensor:
    """share x + (1 - share) partner, per sample: x [n, ...] and share [n] of one type."""
    share = share.view(-1, *[1] * (x.ndim - 1))
    return share * x + (1 - share) * partner(x)
