"""The host measurements of all ranks over a window, packed so that one sum and one maximum reduce them: of the same size on 16,384
ranks as on two.

The slowest rank has to be named, so its number travels in the maximum: the low bits of a float64, under the busy time as float32.
"""

import math
import struct
from collections.abc import Sequence

from harness.telemetry.measurements import HostRow, RanksRow
from harness.telemetry.node_metrics import NODE_HIGHS, NODE_SUMS, met_nodes, node_highs, node_sums

MOST_RANKS = 1 << 21
SUMS = 8 + NODE_SUMS
HIGHS = 6 + NODE_HIGHS


def sums_of(row: HostRow) -> list[float]:
    """The values of a rank's row that are summed over ranks: float64 [SUMS]."""
    counts = (row.alloc_retries, row.ooms, row.computed, row.troubles, row.save_due, row.save_failed)
    return [row.comm_wait_s, row.busy_s, *counts, *node_sums(row.node)]


def highs_of(row: HostRow, rank: int) -> list[float]:
    """The values of a rank's row of which the maximum is taken: float64 [HIGHS]."""
    memory = (row.host_rss_gib, row.gpu_allocated_gib, row.gpu_reserved_gib)
    return [row.data_wait_s, busiest(row.busy_s, rank), *memory, row.cpu_wait_s, *node_highs(row.node)]


def met(sums: Sequence[float], highs: Sequence[float], ranks: int) -> RanksRow:
    """All ranks' row, from the reduced sums and maxima."""
    busy, slowest = who(highs[1])
    return RanksRow(
        data_wait_s=highs[0],
        comm_wait_s=sums[0] / ranks,
        busy_s=busy,
        others_busy_s=max(sums[1] - busy, 0.0) / (ranks - 1) if ranks > 1 else busy,
        slowest=slowest,
        host_rss_gib=highs[2],
        gpu_allocated_gib=highs[3],
        gpu_reserved_gib=highs[4],
        alloc_retries=sums[2],
        ooms=sums[3],
        computed=sums[4],
        troubles=sums[5],
        saves_due=sums[6],
        saves_failed=sums[7],
        cpu_wait_s=highs[5],
        nodes=met_nodes(sums[8:], highs[6:]),
    )


def busiest(busy_s: float, rank: int) -> float:
    """A number that is larger the longer a rank was busy, and tells its rank; of equals the lowest rank's is the largest.

    The bits of a float32 that is not negative sort as it does: 31 of them, and 21 of the rank, fill what a float64 holds exactly.
    """
    (bits,) = struct.unpack("<I", struct.pack("<f", max(busy_s, 0.0)))
    return float(bits * MOST_RANKS + (MOST_RANKS - 1 - rank))


def who(number: float) -> tuple[float, int]:
    """(seconds busy, rank) of `busiest`."""
    bits, rest = divmod(int(number), MOST_RANKS)
    (busy,) = struct.unpack("<f", struct.pack("<I", bits))
    return (busy if math.isfinite(busy) else math.inf), MOST_RANKS - 1 - rest
