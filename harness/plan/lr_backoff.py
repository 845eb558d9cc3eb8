"""A temporarily lowered learning rate: a factor on the schedule, which climbs back over samples, or stays."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LrBackoff:
    """`factor` from `since` samples on; back at 1 `over` samples later, in a line. `over` of 0: it stays. A pure value."""

    factor: float = 1.0
    since: int = 0
    over: int = 0

    def at(self, samples: int) -> float:
        """The factor on the rate at `samples` seen."""
        if not self.over:
            return self.factor
        back = min(max((samples - self.since) / self.over, 0.0), 1.0)
        return self.factor + (1 - self.factor) * back

    def pressed(self, by: float, samples: int, over: int) -> "LrBackoff":
        """Lowered once more, from where it stands at `samples`."""
        return LrBackoff(self.at(samples) * by, samples, over)
