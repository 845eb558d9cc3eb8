"""The gradient noise scale: the batch at which noise is as large as the gradient (McCandlish et al. 2018, 1812.06162).

|g_b|^2 at batch b is on average |G|^2 + S / b, with |G| the true gradient's norm and S the trace of the per-sample covariance. Two
batches give both (appendix A.1); the noise scale is S / |G|^2, in samples. Sums are averaged over windows before they are divided.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.plan.scaling_rules import adascale_gain

DECAY = 0.9
"""Decay of the running means per window of WINDOW steps."""
WINDOW = 10


@dataclass(frozen=True)
class NoiseScale:
    """Running means of |G|^2 and S over windows. Frozen: `after` gives the next. Plain numbers, for any training loop."""

    square: float = 0.0
    trace: float = 0.0
    weight: float = 0.0

    def after(
        self,
        small_square: float,
        small: float,
        big_square: float,
        big: float,
        steps: float = WINDOW,
        *,
        share_square: float = 1.0,
    ) -> "NoiseScale":
        """The means with one more window of `steps` steps: mean squared gradient norms at batches of `small` and `big` samples.

        Where samples hold unequal numbers of counted items (tokens), the small batch's summed gradient is divided by what it would
        hold on average, the step's count x small/big, and `share_square` is the mean square of (its count / that average). Divided
        by its own count instead, its samples would weigh otherwise than in the step. With c the count of a small batch over the
        average, |g_small|^2 is on average c^2 |G|^2 + S / small: so c^2 |g_big|^2 is subtracted for S. Both are then too small by
        one factor, 1 - (small share_square)/big over 1 - small/big, which their ratio does not see.

        A window that is not finite is left out. Raises ValueError unless 0 < small < big.
        """
        if not 0 < small < big:
            raise ValueError(f"batches {small} and {big} give no noise scale: the first must be positive and the smaller")
        square = (big * big_square - small * small_square) / (big - small)
        return self.mixed(square, (small_square - share_square * big_square) / (1 / small - 1 / big), steps)

    def after_moments(
        self, grad_square: float, moment_square: float, beta: float, batch: float, steps: float = WINDOW
    ) -> "NoiseScale":
        """The means with one more window, from the optimizer's first moment: free on every backend, and as slow as the moment is.

        The moment m = (1 - beta) sum beta^i g is an average of gradients whose noise is (1 - beta)/(1 + beta) of one gradient's.
        `grad_square` is the mean squared norm of the gradients it was made of, at batches of `batch` samples.
        """
        if not 0 < beta < 1:
            raise ValueError(f"beta {beta} is not an average over steps")
        rest = (1 - beta) / (1 + beta)
        return self.mixed(
            (moment_square - rest * grad_square) / (1 - rest), batch * (grad_square - moment_square) / (1 - rest), steps
        )

    def mixed(self, square: float, trace: float, steps: float) -> "NoiseScale":
        """The running means with one more window's |G|^2 and S in them."""
        if not (math.isfinite(square) and math.isfinite(trace)):
            return self
        keep = DECAY ** (steps / WINDOW)
        return NoiseScale(
            keep * self.square + (1 - keep) * square, keep * self.trace + (1 - keep) * trace, keep * self.weight + 1 - keep
        )

    @property
    def samples(self) -> float | None:
        """The noise scale in samples; None before the first window, or while noise hides the gradient (|G|^2 not positive)."""
        return self.trace / self.square if self.weight and self.square > 0 and self.trace >= 0 else None

    def gain(self, reference_batch: int, ratio: float) -> float | None:
        """AdaScale's gain r in [1, k] for the ratio k: reference steps that one step is worth (Johnson et al. 2020, 2007.05105).

        k where noise hides the gradient, 1 where no noise is seen: estimates below 0 count as 0. None before the first window.
        """
        square, trace = max(self.square, 0.0), max(self.trace, 0.0)
        if not square and not trace:
            return None
        return adascale_gain(trace / square if square else math.inf, reference_batch, ratio)

    @staticmethod
    def from_json(tree: Mapping[str, Any]) -> "NoiseScale":
        """The means from what `dataclasses.asdict` gave."""
        return NoiseScale(**tree)
