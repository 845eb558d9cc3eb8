"""Augmentation on the device, from each sample's `key`: the same picture on every layout of GPUs."""

import math

import torch
from torch import Tensor
from torch.nn import functional as fn

from harness.parts.random import uniform

ROW, COLUMN, MIRROR, RADIUS, ANGLE = range(1, 6)
"""Purposes of the random numbers."""
PAD_SHARE = 8
"""Images move by up to 1/8 of their side."""


def augment(image: Tensor, key: Tensor, *, flip: bool) -> Tensor:
    """Shift each image [n, c, h, w] by up to 1/8 of its side, filled with 0 (black); with `flip`, mirror half of them.

    The crop of He et al. 2016, 1512.03385, section 4.2, done as one gather. `key` int64 [n].
    """
    n, _, height, width = image.shape
    up, left = height // PAD_SHARE, width // PAD_SHARE
    rows = torch.arange(height, device=key.device) + _below(key, ROW, 2 * up + 1)[:, None]
    columns = torch.arange(width, device=key.device).expand(n, width)
    if flip:
        columns = torch.where((uniform(key, MIRROR) < 0.5)[:, None], columns.flip(1), columns)
    columns = columns + _below(key, COLUMN, 2 * left + 1)[:, None]
    padded = fn.pad(image, (left, left, up, up))
    sample = torch.arange(n, device=key.device)[:, None, None]
    return padded.movedim(1, -1)[sample, rows[:, :, None], columns[:, None, :]].movedim(-1, 1).contiguous()


def _below(key: Tensor, purpose: int, bound: int) -> Tensor:
    """A whole number in [0, bound) per sample: int64 [n]."""
    return (uniform(key, purpose) * bound).long()


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
    """share x + (1 - share) partner, per sample: x [n, ...] and share [n] of one type (mixup, Zhang et al. 2018, 1710.09412)."""
    share = share.view(-1, *[1] * (x.ndim - 1))
    return share * x + (1 - share) * partner(x)
