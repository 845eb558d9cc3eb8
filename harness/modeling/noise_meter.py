"""The noise scale in a loop of one's own: from the gradient after a step's first pass and the one after its last."""

import math
import warnings
from collections.abc import Iterable
from typing import final

import torch
from torch import Tensor, nn

from harness.telemetry.noise_scale import NoiseScale


@final
class PassNoise:
    """Gradient noise scale from gradients accumulated in `.grad` over the passes of a step. One process or DDP; copies nothing.

    `micro` is the samples of one pass, `passes` how often `passed` is called in a full step, `ranks` how many ranks the gradient of
    the last such call is a mean over (1 where it is not reduced yet). By how much each loss is divided, for accumulation or for
    fp16, does not matter as long as all passes of a step share it: divide sums over tokens by the step's count, not by the pass's.
    `params` are those of the model; what is not trained is left out. Raises ValueError for fewer than two passes.
    Source: McCandlish et al. 2018, arXiv 1812.06162, appendix A.1, with passes and steps as the two batches.
    """

    def __init__(self, params: Iterable[nn.Parameter], *, micro: int, passes: int, ranks: int = 1) -> None:
        if passes < 2:
            raise ValueError(f"{passes} pass a step gives no noise scale: accumulate gradients over at least 2 passes a step")
        self.params = [p for p in params if p.requires_grad]
        self.micro, self.passes, self.ranks = micro, passes, ranks
        self.scale = NoiseScale()
        self._seen = 0
        self._first: Tensor | None = None
        self._last: Tensor | None = None
        self._items: list[Tensor | float] = []
        self._steps: list[Tensor] = []
        self._left_out, self._last_seen = 0, 0
        self._fits = False
        """Whether a step had `passes` passes, or it has been said that none had."""

    def passed(self, items: Tensor | float = 1.0) -> None:
        """A backward is done, and no clipping yet. Two norms a step are taken, and stay on the device.

        `items`: how many the pass's loss is a sum over, where passes hold unequal numbers (tokens). Without them their spread is
        taken for noise: the noise scale comes out larger by the squared relative spread of samples' counts.
        """
        self._seen += 1
        self._items.append(items)
        if self._seen == 1:
            self._first = self._square()
        elif self._seen == self.passes:
            self._last = self._square()

    def stepped(self) -> None:
        """The optimizer's step is done. A step of another number of passes, as at the end of an epoch, is left out."""
        if self._seen == self.passes and self._first is not None and self._last is not None:
            total = sum(self._items)
            share = self.passes * self._items[0] / total if isinstance(total, Tensor) or total else math.nan
            cell = share.to(self._first) if isinstance(share, Tensor) else torch.full_like(self._first, share)
            self._steps.append(torch.stack([self._first, self._last, cell]))
            self._fits = True
        else:
            self._left_out, self._last_seen = self._left_out + 1, self._seen
        self._seen, self._first, self._last, self._items = 0, None, None, []

    def read(self) -> NoiseScale:
        """The running estimate with the steps since the last call; one copy to the host. Steps not finite are left out.

        Warns, once, where every step so far had another number of passes than `passes`: there is no estimate then.
        """
        if self._left_out and not self._fits:
            at = f"none of {self._left_out} steps had {self.passes} passes, the last had {self._last_seen}"
            warnings.warn(
                f"PassNoise: no noise scale, since {at}: give passes= the number of passed() calls in a step", stacklevel=2
            )
            self._fits = True
        found = torch.stack(self._steps).double() if self._steps else torch.zeros(0, 3)
        good = found.cpu()[found.isfinite().all(1).cpu()]
        self._steps = []
        if len(good):
            first, last = good[:, :2].mean(0).tolist()
            big = self.micro * self.passes * self.ranks
            squares = first, self.micro, last / self.passes**2, big
            self.scale = self.scale.after(*squares, len(good), share_square=self._share_square(good[:, 2]))
        return self.scale

    def _share_square(self, shares: Tensor) -> float:
        """Mean square of a first pass's items over the mean of its step. Only this rank's mean is known: others spread it less."""
        excess = float(shares.square().mean()) - 1
        return 1 + excess * (1 - 1 / (self.passes * self.ranks)) / (1 - 1 / self.passes)

    def _square(self) -> Tensor:
        """The squared norm of what lies in `.grad`."""
        grads = [p.grad for p in self.params if p.grad is not None]
        return torch.stack(torch._foreach_norm(grads)).square().sum()
