"""How long a run's steps usually take, from the heartbeats of its ranks: what a hang is measured by. Pure."""

from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import final

from harness.supervision.fault_detection import RankStatus
from harness.supervision.heartbeat import Beat

ENOUGH, MOST = 20, 200
"""Looks at ranks that had made steps: from how many on the median counts, and how many are remembered."""


@final
class StepPace:
    """Of one start of the ranks. `factor` times the median step is a hang; None: that is not asked for."""

    def __init__(self, factor: float | None, least_s: float) -> None:
        self._factor, self._least_s = factor, least_s
        self._seconds = deque[float](maxlen=MOST)
        self._seen: dict[int, Beat] = {}

    def see(self, looks: Sequence[RankStatus]) -> None:
        """Learn from how far the ranks have come since the last look."""
        for look in looks:
            beat, before = look.beat, self._seen.get(look.rank)
            if beat is None:
                continue
            steps = beat.ticks - before.ticks if before is not None and beat.pid == before.pid else 0
            if before is not None and steps > 0 and beat.warm and before.warm and beat.phase == before.phase == "train":
                self._seconds.append((beat.moved_s - before.moved_s) / steps)
            self._seen[look.rank] = beat

    @property
    def limit_s(self) -> float | None:
        """Seconds without a step after which a rank in training hangs; None where too few steps are known."""
        if self._factor is None or len(self._seconds) < ENOUGH:
            return None
        return max(self._factor * median(self._seconds), self._least_s)
