"""The learning rate as a function of samples seen, so that k times the batch gives the same rate at the same sample."""

import math
from dataclasses import dataclass
from typing import Literal

Shape = Literal["constant", "linear", "cosine", "step", "exponential", "plateau", "inverse_sqrt", "wsd"]


@dataclass(frozen=True)
class Schedule:
    """All lengths in samples, all rates absolute. `start` is the rate at sample 0, `peak` the rate at the warm-up's end.

    Warm-up: one equal increment per step from `start` to `peak` (Goyal et al. 2017, section 2.2). After it:

    constant, plateau   peak (plateau is lowered at run time by the validation metric, see `harness.plan.plateau`)
    linear, cosine      from peak at the warm-up's end to final_fraction x peak at the horizon (cosine: 1608.03983)
    step                x gamma at each milestone, counted from sample 0 (Goyal et al. 2017: epochs 30, 60, 80)
    exponential         x gamma per `every` samples after the warm-up
    inverse_sqrt        x sqrt(warm-up / samples) (Vaswani et al. 2017, 1706.03762, section 5.3)
    wsd                 peak, then linear to final_fraction over the last decay_fraction (Hu et al. 2024, 2404.06395)
    """

    shape: Shape
    start: float
    peak: float
    warmup: int
    horizon: int
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    every: int = 0
    decay_fraction: float = 0.2
    final_fraction: float = 0.0

    def lr(self, samples: float, batch: int) -> float:
        """The rate for the step that begins at `samples` seen and takes `batch` more.

        A warm-up from zero counts the step's own samples, so that the first applied step is not at rate zero.
        """
        if samples < self.warmup:
            seen = min(samples + batch, self.warmup) if self.start == 0 else samples
            return self.start + (self.peak - self.start) * seen / self.warmup
        return self.peak * self.factor(samples)

    def factor(self, samples: float) -> float:
        """The shape after the warm-up, as a factor of the peak, at `samples` seen."""
        rest = max(self.horizon - self.warmup, 1)
        done = min(max(samples - self.warmup, 0) / rest, 1.0)
        if self.shape == "linear":
            return 1 - (1 - self.final_fraction) * done
        if self.shape == "cosine":
            return self.final_fraction + (1 - self.final_fraction) * (1 + math.cos(math.pi * done)) / 2
        if self.shape == "step":
            return self.gamma ** sum(samples >= m for m in self.milestones)
        if self.shape == "exponential":
            return float(self.gamma ** ((samples - self.warmup) / self.every))
        if self.shape == "inverse_sqrt":
            return math.sqrt(self.warmup / samples)
        if self.shape == "wsd":
            falling = max(self.horizon * self.decay_fraction, 1.0)
            left = min(max(self.horizon - samples, 0) / falling, 1.0)
            return self.final_fraction + (1 - self.final_fraction) * left
        return 1.0
