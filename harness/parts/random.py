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
