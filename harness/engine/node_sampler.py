"""One light sampler per node: CPU, memory and network by psutil, GPUs by NVML, in a thread of the node's first rank.

It never runs in a step: a window takes over the newest sample.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, final

import torch

from harness.engine.interface import Engine
from harness.plan.world import Place, place
from harness.supervision.output_redirect import say
from harness.telemetry.node_metrics import NO_NODE, NodeRow

EVERY_S = 2.0
"""Seconds between two samples."""
MIB, GIB = 2.0**20, 2.0**30
_CLOSE_S = 5.0


@final
class NodeSampler:
    """Samples until `close`; `newest` is its last row. One that fails says so once and measures no more."""

    def __init__(self, gpus: Sequence[str]) -> None:
        self.newest = NO_NODE
        self._gpus = list(gpus)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="node sampler", daemon=True)
        self._thread.start()

    def row(self) -> NodeRow:
        """The newest sample; of no node before there is one."""
        return self.newest

    def close(self) -> None:
        """End the thread."""
        self._over.set()
        self._thread.join(_CLOSE_S)

    def _run(self) -> None:
        try:
            host, gpus = _Host(), _gpu_reader(self._gpus)
            while not self._over.wait(EVERY_S if self.newest.nodes else EVERY_S / 4):
                self.newest = NodeRow(nodes=1, **host.sample(), **gpus())
        except Exception as e:  # noqa: BLE001  watching must not end a run
            self.newest = NO_NODE
            say(f"warn   system metrics of this node are not measured: {type(e).__name__}: {e}; training continues")


def measure_node(engine: Engine) -> NodeSampler | None:
    """Measure this node from here on, for the windows of `engine`; None where another rank of the node does."""
    sampler = sample_node(place(os.environ), engine.device)
    if sampler is not None:
        engine.node = sampler.row
    return sampler


def sample_node(here: Place, device: torch.device) -> NodeSampler | None:
    """The sampler of this node, on its first rank; None on the others. The ranks' GPUs are the node's first visible ones."""
    if here.local_rank:
        return None
    ranks = max(here.size // here.nodes, 1)
    gpus = range(min(ranks, torch.cuda.device_count())) if device.type == "cuda" else ()
    return NodeSampler([f"GPU-{torch.cuda.get_device_properties(number).uuid}" for number in gpus])


@final
class _Host:
    """CPU, memory and network: rates since the last sample."""

    def __init__(self) -> None:
        import psutil

        self._psutil = psutil
        psutil.cpu_percent()
        self._at, self._before = time.monotonic(), self._bytes()

    def _bytes(self) -> tuple[int, int]:
        """(sent, received) so far, over all interfaces but loopback."""
        found = [n for name, n in self._psutil.net_io_counters(pernic=True).items() if name != "lo"]
        return sum(n.bytes_sent for n in found), sum(n.bytes_recv for n in found)

    def sample(self) -> dict[str, Any]:
        """NodeRow's fields of the host."""
        now, found = time.monotonic(), self._bytes()
        sent, received = ((after - before) / MIB / (now - self._at) for after, before in zip(found, self._before, strict=True))
        self._at, self._before = now, found
        return {
            "cpu_pct": self._psutil.cpu_percent(),
            "memory_pct": self._psutil.virtual_memory().percent,
            "sent_mib_per_s": max(sent, 0.0),  # an interface that went away takes its count with it
            "received_mib_per_s": max(received, 0.0),
        }


def _gpu_reader(uuids: Sequence[str]) -> Callable[[], dict[str, Any]]:
    """A function that gives NodeRow's fields of these GPUs. Without NVML they are not measured, which is told once."""
    if not uuids:
        return dict
    try:
        import pynvml
    except ImportError:
        say("note   system metrics of GPUs are not measured: pip install 'widebatch[gpu]' (NVML)")
        return dict
    pynvml.nvmlInit()
    handles = [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]
    return lambda: gpu_fields(pynvml, handles)


def gpu_fields(nvml: Any, handles: Sequence[Any]) -> dict[str, Any]:
    """NodeRow's fields of the GPUs; what one of them does not say (as a MIG instance its power) it is left out of."""

    def known(ask: Callable[[Any], float]) -> list[float]:
        found = []
        for handle in handles:
            try:
                found.append(float(ask(handle)))
            except nvml.NVMLError:
                continue
        return found

    busy = known(lambda h: nvml.nvmlDeviceGetUtilizationRates(h).gpu)
    power = known(lambda h: nvml.nvmlDeviceGetPowerUsage(h) / 1e3)
    return {
        "gpus": len(busy),
        "gpu_utilization_pct": sum(busy),
        "powered": len(power),
        "gpu_power_w": sum(power),
        "gpu_memory_gib": max(known(lambda h: nvml.nvmlDeviceGetMemoryInfo(h).used / GIB), default=None),
        "gpu_temperature_c": max(known(lambda h: nvml.nvmlDeviceGetTemperature(h, nvml.NVML_TEMPERATURE_GPU)), default=None),
    }
