"""What a window took on one rank, for the view of all ranks: not reduced over them."""

import math
from dataclasses import dataclass

from harness.telemetry.measurements import Reading


@dataclass(frozen=True)
class RankWindow:
    """Per step: `step_ms` in all, `busy_ms` in the rank's own passes and step; shares of the time; memory in GiB.

    `comm_wait_pct` is None where the backend cannot tell: `busy_ms` then holds the wait for other ranks too.
    """

    step_ms: float
    busy_ms: float
    data_wait_pct: float
    comm_wait_pct: float | None
    host_rss_gib: float
    gpu_allocated_gib: float


def rank_window(reading: Reading) -> RankWindow | None:
    """This rank's part of a window; None for one that took no time."""
    own, spent_s, steps = reading.own, sum(reading.laps_s), len(reading.laps_s)
    if not spent_s:
        return None
    comm = None if math.isnan(own.comm_wait_s) else 100 * own.comm_wait_s / spent_s
    per_step = 1e3 / steps
    return RankWindow(
        step_ms=spent_s * per_step,
        busy_ms=own.busy_s * per_step,
        data_wait_pct=100 * own.data_wait_s / spent_s,
        comm_wait_pct=comm,
        host_rss_gib=own.host_rss_gib,
        gpu_allocated_gib=own.gpu_allocated_gib,
    )
