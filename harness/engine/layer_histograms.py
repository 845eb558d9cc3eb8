"""Histograms of weights and gradients, layer by layer, after a window's last step: counted on the device, read with the window."""

from collections.abc import Sequence
from typing import Literal, final

import torch
import torch.distributed as dist
from torch import Tensor

from harness.engine.device_scalars import Number
from harness.telemetry.histograms import BINS, HIGH, LOW, OCTAVES, ZERO, Histogram

Kind = Literal["weights", "gradients"]
CHUNK = 1 << 22
"""Elements that are counted at once: a tensor of any size needs no copy of itself. A float32 counts so many exactly."""


@final
class LayerHistograms:
    """`names`: what the tensors are called, in their order."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(names)
        self._counts: dict[Kind, Tensor] = {}

    def count(self, kind: Kind, tensors: Sequence[Tensor], scale: Number = 1.0) -> None:
        """Count this rank's part of each tensor, times `scale`. Waits for nothing."""
        self._counts[kind] = torch.stack([_counted(tensor, scale) for tensor in tensors])

    def take(self, copies: int, ranks: int) -> dict[str, Histogram]:
        """By KIND/NAME, the histograms of what was counted last; of shards, `copies` ranks hold the same. All ranks call it."""
        counts, self._counts = self._counts, {}
        if not counts:
            return {}
        together = torch.stack(list(counts.values()))
        if copies < ranks:
            dist.all_reduce(together)
            together /= copies
        found = zip(counts, together.tolist(), strict=True)
        return {f"{kind}/{name}": Histogram.of(row) for kind, rows in found for name, row in zip(self._names, rows, strict=True)}


def _counted(tensor: Tensor, scale: Number) -> Tensor:
    """How many elements lie in each bin, without those that are not finite: float64 [BINS]."""
    counts = torch.zeros(BINS, dtype=torch.float64, device=tensor.device)
    flat = tensor.detach().reshape(-1)
    for start in range(0, len(flat), CHUNK):
        values = flat[start : start + CHUNK].float() * scale
        octave = torch.frexp(values).exponent.clamp(LOW, HIGH) - LOW  # 2^(e-1) <= |x| < 2^e; 0 for what counts as 0
        octave = torch.where(values == 0, 0, octave)
        places = torch.where(values.isfinite(), ZERO + torch.where(values < 0, -octave, octave), BINS + OCTAVES)
        counts += torch.histc(places.float(), BINS, -0.5, BINS - 0.5)
    return counts
