"""What a node is doing, as measured on one of its ranks, and how nodes meet: NodeRow -> sums and maxima -> the group system/."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness.telemetry.events import Metrics

NODE_SUMS = 8
NODE_HIGHS = 3
UNKNOWN = -1.0
"""What stands in a maximum for a value that no node knows: none is below 0."""


@dataclass(frozen=True)
class NodeRow:
    """A node's newest sample; None where a value is not known. A rank that does not measure its node has a row of nothing.

    Rates are in MiB/s, over all network interfaces but loopback. `gpus` counts the GPUs of the run on this node that say how busy
    they are, `gpu_utilization_pct` is the sum of theirs; `powered` counts those that say their power, `gpu_power_w` is its sum.
    """

    nodes: int = 0
    cpu_pct: float = 0.0
    sent_mib_per_s: float = 0.0
    received_mib_per_s: float = 0.0
    memory_pct: float | None = None
    gpus: int = 0
    gpu_utilization_pct: float = 0.0
    powered: int = 0
    gpu_power_w: float = 0.0
    gpu_memory_gib: float | None = None
    gpu_temperature_c: float | None = None


NO_NODE = NodeRow()


def node_sums(row: NodeRow) -> list[float]:
    """The values that are summed over ranks: float64 [NODE_SUMS]."""
    rates = (row.cpu_pct, row.sent_mib_per_s, row.received_mib_per_s)
    return [row.nodes, *rates, row.gpus, row.gpu_utilization_pct, row.powered, row.gpu_power_w]


def node_highs(row: NodeRow) -> list[float]:
    """The values of which the maximum is taken: float64 [NODE_HIGHS]."""
    return [UNKNOWN if v is None else v for v in (row.memory_pct, row.gpu_memory_gib, row.gpu_temperature_c)]


def met_nodes(sums: Sequence[float], highs: Sequence[float]) -> NodeRow:
    """All nodes' row, from the reduced sums and maxima."""
    nodes, cpu, sent, received, gpus, busy, powered, power = sums
    memory, gpu_memory, temperature = (None if high < 0 else high for high in highs)
    return NodeRow(round(nodes), cpu, sent, received, memory, round(gpus), busy, round(powered), power, gpu_memory, temperature)


def system(nodes: NodeRow, devices: int, samples_per_s: float | None) -> Metrics:
    """The group system/. What is not known is None: all of it before the first sample.

    Energy is known where each of the run's `devices` says its power.
    """
    power = nodes.gpu_power_w if nodes.powered else None
    known = power is not None and nodes.powered >= devices and samples_per_s and math.isfinite(samples_per_s)
    return {
        "system/cpu_pct": nodes.cpu_pct / nodes.nodes if nodes.nodes else None,
        "system/memory_pct": nodes.memory_pct,
        "system/network_sent_mib_per_s": nodes.sent_mib_per_s if nodes.nodes else None,
        "system/network_received_mib_per_s": nodes.received_mib_per_s if nodes.nodes else None,
        "system/gpu_utilization_pct": nodes.gpu_utilization_pct / nodes.gpus if nodes.gpus else None,
        "system/gpu_memory_gib": nodes.gpu_memory_gib,
        "system/gpu_power_w": power,
        "system/gpu_temperature_c": nodes.gpu_temperature_c,
        "system/energy_j_per_sample": power / samples_per_s if known and power is not None and samples_per_s else None,
    }
