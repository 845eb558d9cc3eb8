"""The noise scale in a loop of one's own: from the gradient after a step's first pass and the one after its last."""

from collections.abc import Iterable
from typing import final

import torch
from torch import Tensor, nn

from harness.stats.noise import NoiseScale


@final
class PassNoise:
    """Watches gradients that add up in `.grad` over the passes of a step. For one process or DDP; nothing is copied or sent.

    `micro` is the samples of one pass, `passes` how often `passed` is called in a full step, `ranks` how many ranks the gradient of
    the last such call is a mean over (1 where it is not reduced yet). By how much each loss is divided, for accumulation or for
    fp16, does not matter as long as all passes of a step share it. Raises ValueError for fewer than two passes.
    """

    def __init__(self, params: Iterable[nn.Parameter], *, micro: int, passes: int, ranks: int = 1) -> None:
        if passes < 2:
            raise ValueError(f"{passes} pass a step tells nothing of noise: at least 2 must be seen")
        self.params = [p for p in params if p.requires_grad]
        self.micro, self.passes, self.ranks = micro, passes, ranks
        self.scale = NoiseScale()
        self._seen = 0
        self._first: Tensor | None = None
        self._last: Tensor | None = None
        self._steps: list[Tensor] = []

    def passed(self) -> None:
        """A backward is done, and no clipping yet. Two norms a step are taken, and stay on the device."""
        self._seen += 1
        if self._seen == 1:
            self._first = self._square()
        elif self._seen == self.passes:
            self._last = self._square()

    def stepped(self) -> None:
        """The optimizer's step is done. A step of another number of passes, as at the end of an epoch, is left out."""
        if self._seen == self.passes and self._first is not None and self._last is not None:
            self._steps.append(torch.stack([self._first, self._last]))
        self._seen, self._first, self._last = 0, None, None

    def read(self) -> NoiseScale:
        """The running estimate with the steps since the last call; one copy to the host. Steps not finite are left out."""
        found = torch.stack(self._steps).double() if self._steps else torch.zeros(0, 2)
        good = found.cpu()[found.isfinite().all(1).cpu()]
        self._steps = []
        if len(good):
            first, last = good.mean(0).tolist()
            big = self.micro * self.passes * self.ranks
            self.scale = self.scale.after(first, self.micro, last / self.passes**2, big, len(good))
        return self.scale

    def _square(self) -> Tensor:
        """The squared norm of what lies in `.grad`."""
        grads = [p.grad for p in self.params if p.grad is not None]
        return torch.stack(torch._foreach_norm(grads)).square().sum()
