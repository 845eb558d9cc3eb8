"""Shape plateau: lower the learning rate when the validation loss has not improved for a while."""

import math
from dataclasses import dataclass, replace

THRESHOLD = 1e-4
"""An improvement by a smaller share of the best loss does not count. The default of torch.optim.lr_scheduler.ReduceLROnPlateau
(mode rel)."""


@dataclass(frozen=True)
class Plateau:
    """State of the plateau rule: a pure value, kept in the checkpoint. `best_at` is in samples, `factor` multiplies the rate.

    `drops` counts how often the patience was over.
    """

    factor: float = 1.0
    best: float | None = None
    best_at: int = 0
    drops: int = 0

    def after(
        self, loss: float, samples: int, *, patience: int, gamma: float, floor: float, threshold: float = THRESHOLD
    ) -> "Plateau":
        """The state after an evaluation with `loss` at `samples` seen. Better is lower by more than `threshold` of the best's size.

        A loss that is not a number never counts as better.
        """
        if not math.isnan(loss) and (self.best is None or loss < self.best - threshold * abs(self.best)):
            return replace(self, best=loss, best_at=samples)
        if samples - self.best_at < patience:
            return self
        return replace(self, factor=max(self.factor * gamma, floor), best_at=samples, drops=self.drops + 1)
