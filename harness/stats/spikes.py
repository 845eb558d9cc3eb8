"""How unusual a value is against those before it, by median and MAD: one spike, or a NaN, does not blind it to the next.

z = 0.6745 (x - median) / MAD (Iglewicz & Hoaglin 1993). A value that is not finite or is flagged never enters the memory.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

MEMORY = 128
LEAST = 20
"""Values before which nothing can be said."""
FLAGGED = 10.0
"""z from which a value is a spike. Upwards only: a loss that falls is no trouble."""


@dataclass(frozen=True)
class Spikes:
    """The values that were usual, the newest last, and how many were spikes. Frozen: `after` gives the next.

    LEAST spikes in a row (`running`) are a new level and no spikes: the memory starts anew.
    """

    memory: tuple[float, ...] = ()
    count: int = 0
    running: int = 0

    def z(self, value: float) -> float | None:
        """How far a value lies above the median, in robust deviations; None while there is too little to compare with."""
        if len(self.memory) < LEAST or not math.isfinite(value):
            return None
        middle = median(self.memory)
        spread = median(abs(x - middle) for x in self.memory)
        if spread == 0:
            return 0.0 if value <= middle else math.inf
        return 0.6745 * (value - middle) / spread

    def after(self, value: float) -> "Spikes":
        """With one more value."""
        if not math.isfinite(value):
            return self
        z = self.z(value)
        if z is not None and z > FLAGGED:
            running = self.running + 1
            return Spikes(self.memory if running < LEAST else (), self.count + 1, running if running < LEAST else 0)
        return Spikes((*self.memory, value)[-MEMORY:], self.count)

    @staticmethod
    def from_json(tree: Mapping[str, Any]) -> "Spikes":
        """From what `dataclasses.asdict` gave."""
        return Spikes(tuple(tree["memory"]), tree["count"], tree["running"])
