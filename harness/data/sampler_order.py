"""The order of a script's own DataLoader, as a stream of positions: front to back, or as accelerate's seedable sampler shuffles."""

from typing import final

import numpy as np
import torch

from harness.data.shuffles import Indices


@final
class SamplerOrder:
    """Epoch e of a shuffled loader is `torch.randperm` of a generator with seed + e, which is accelerate's seedable sampler."""

    def __init__(self, n: int, seed: int, *, shuffle: bool) -> None:
        self.n, self.seed, self.shuffle = n, seed, shuffle
        self._epoch, self._indices = -1, np.empty(0, np.int64)

    def take(self, start: int, stop: int) -> Indices:
        """Data set indices of stream positions [start, stop), across epochs. int64 [stop - start]."""
        parts = [np.empty(0, np.int64)]
        while start < stop:
            epoch, within = divmod(start, self.n)
            end = min(stop, (epoch + 1) * self.n)
            parts.append(self._of(epoch)[within : within + end - start])
            start = end
        return np.concatenate(parts)

    def _of(self, epoch: int) -> Indices:
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            indices = torch.randperm(self.n, generator=generator) if self.shuffle else torch.arange(self.n)
            self._epoch, self._indices = epoch, indices.numpy()
        return self._indices
