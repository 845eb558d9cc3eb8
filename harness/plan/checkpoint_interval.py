"""How often to save, by the clock: every so many minutes, or as often as failures make it worth what a save costs. Pure."""

import math
from dataclasses import dataclass

from harness.config.errors import UserError
from harness.config.schema import CheckpointConfig

DEFAULT_MTBF_HOURS = 24.0
FIRST_COST_S = 1.0
"""The assumed cost of a save in seconds until one is measured."""


def young_daly(cost_s: float, mtbf_s: float) -> float:
    """Seconds of training between two saves that lose the least time: sqrt(2 x cost x mean time between failures).

    Young 1974, "A first order approximation to the optimum checkpoint interval"; Daly 2006 for its terms of higher order.
    """
    return math.sqrt(2 * cost_s * mtbf_s)


@dataclass(frozen=True)
class Cadence:
    """Seconds between saves: `every_s` as asked for, or by `mtbf_s`; neither where saves go by samples."""

    every_s: float | None
    mtbf_s: float | None

    def interval_s(self, cost_s: float | None, write_s: float) -> float | None:
        """Seconds from one save to the next, None for never by the clock.

        `cost_s`: what the last one held training up, None before the first; `write_s`: what it then took to write.
        """
        if self.mtbf_s is None:
            return self.every_s
        return max(young_daly(FIRST_COST_S if cost_s is None else cost_s, self.mtbf_s), write_s)


def cadence(config: CheckpointConfig) -> Cadence:
    """The cadence by the clock, if the run file asks for it or sets nothing. Raises UserError if it says two things."""
    given = {"every_epochs": config.every_epochs, "every_samples": config.every_samples}
    given |= {"every_minutes": config.every_minutes, "mtbf_hours": config.mtbf_hours}
    named = [f"{name} {value:g}" for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise UserError("checkpoint", f"has {' and '.join(named)}", "give one of them")
    if config.every_minutes is not None:
        return Cadence(config.every_minutes * 60, None)
    if config.every_epochs is not None or config.every_samples is not None:
        return Cadence(None, None)
    return Cadence(None, (config.mtbf_hours or DEFAULT_MTBF_HOURS) * 3600)
