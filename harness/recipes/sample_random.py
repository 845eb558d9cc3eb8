"""Randomness that belongs to a sample, not to a rank: numbers derived from the batch's `key`."""

import torch
from torch import Tensor

_MULTIPLIER = -7046029254386353131
"""0x9E3779B97F4A7C15 as a signed 64-bit number."""


def uniform(key: Tensor, purpose: int) -> Tensor:
    """A number in [0, 1) per sample: float32 [n], from `key` int64 [n]. Each `purpose` gives independent numbers."""
    x = key ^ (purpose * _MULTIPLIER % (1 << 63))
    for _ in range(2):
        x = (x ^ (x >> 32)) * _MULTIPLIER
    return ((x >> 40) & 0xFFFFFF).to(torch.float32) / (1 << 24)


DEPTH = 1 << 10
"""Purposes from here on are the residual branches of a net, by number."""


def survival(key: Tensor, branch: int, rate: float) -> Tensor:
    """Stochastic depth (Huang et al. 2016, 1603.09382), per sample: 0 with probability `rate` < 1, else 1 / (1 - rate).

    What a residual branch is multiplied by: float32 [n], from `key` int64 [n].
    """
    return (uniform(key, DEPTH + branch) >= rate).float() / (1 - rate)


def depth_rate(branch: int, branches: int, rate: float) -> float:
    """The linear decay rule of the same paper: the last of `branches` is left out at `rate`, those before it less often."""
    return rate * (branch + 1) / branches
