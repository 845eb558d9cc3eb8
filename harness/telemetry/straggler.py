"""A rank that delays the others in several windows in a row: which one, and by how much. One slow window may be chance."""

import math
from dataclasses import dataclass
from typing import final

from harness.telemetry.measurements import RanksRow

WINDOWS = 3
"""How many windows in a row make a straggler."""
SHARE = 0.1
"""Share of a window's time by which its slowest rank must be busy longer than the mean of the others."""


@final
@dataclass(frozen=True)
class Straggler:
    """The slowest rank of so many windows in a row, in each of which it held the others up."""

    rank: int = -1
    windows: int = 0

    def after(self, ranks: RanksRow, steps: int, seconds: float) -> "tuple[Straggler, str]":
        """(what is known after one more window of `steps` in `seconds`, a message if a rank is found to be slow).

        On backends that cannot separate work from waiting no rank is ever found.
        """
        longer_s = ranks.busy_s - ranks.others_busy_s
        if math.isnan(ranks.comm_wait_s) or seconds <= 0 or not longer_s >= SHARE * seconds:
            return Straggler(), ""
        now = Straggler(ranks.slowest, self.windows + 1 if ranks.slowest == self.rank else 1)
        if now.windows < WINDOWS:
            return now, ""
        busy, others = (1e3 * s / steps for s in (ranks.busy_s, ranks.others_busy_s))
        text = f"rank {now.rank} is a straggler: {busy:.3g} ms a step, the others {others:.3g}"
        return now, f"{text}; that is {100 * longer_s / seconds:.0f} % of the time, for {now.windows} windows"
