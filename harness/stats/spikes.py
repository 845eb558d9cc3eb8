"""How unusual a value is against those before it, by median and MAD: one spike, or a NaN, does not blind it to the next.

z = 0.6745 (x - median) / MAD (Iglewicz & Hoaglin 1993). A value that is not finite or is flagged never enters the memory.
"""

import math
from collections.abc import Mapping, Sequence
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

    def scores(self, values: Sequence[float]) -> list[float | None]:
        """How far each value lies above the median, in robust deviations; None while there is too little to compare with.

        The median and its spread are taken once for all of them: a window's values are scored against those before the window.
        """
        if len(self.memory) < LEAST:
            return [None] * len(values)
        middle = median(self.memory)
        spread = median([abs(x - middle) for x in self.memory])
        return [_score(x, middle, spread) if math.isfinite(x) else None for x in values]

    def limit(self, z: float) -> float | None:
        """The value whose score would be `z`; None while there is too little to compare with, or nothing varies."""
        if len(self.memory) < LEAST:
            return None
        middle = median(self.memory)
        spread = median([abs(x - middle) for x in self.memory])
        return middle + z * spread / 0.6745 if spread else None

    def after(self, values: Sequence[float]) -> "Spikes":
        """With a window's values. Those that are not finite are left out, those that are spikes counted."""
        memory, count, running = list(self.memory), self.count, self.running
        for value, score in zip(values, self.scores(values), strict=True):
            if not math.isfinite(value):
                continue
            if score is not None and score > FLAGGED:
                count, running = count + 1, running + 1
                if running == LEAST:
                    memory, running = [], 0
            else:
                memory.append(value)
        return Spikes(tuple(memory[-MEMORY:]), count, running)

    @staticmethod
    def from_json(tree: Mapping[str, Any]) -> "Spikes":
        """From what `dataclasses.asdict` gave."""
        return Spikes(tuple(tree["memory"]), tree["count"], tree["running"])


def _score(value: float, middle: float, spread: float) -> float:
    if spread == 0:
        return 0.0 if value <= middle else math.inf
    return 0.6745 * (value - middle) / spread
