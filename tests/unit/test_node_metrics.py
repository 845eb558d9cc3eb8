"""What nodes do meets in one row, and becomes the group system/; the sampler measures this machine, and fails alone."""

import os
import time
from types import SimpleNamespace

import pytest
import torch

from harness.engine import node_sampler
from harness.engine.node_sampler import gpu_fields, sample_node
from harness.plan.world import ALONE, Place
from harness.telemetry.node_metrics import NO_NODE, NodeRow, met_nodes, node_highs, node_sums, system

LIMIT_S = 600.0
GIB = 2**30


def meet(rows: list[NodeRow]) -> NodeRow:
    """What the two reductions give."""
    sums = [sum(column) for column in zip(*map(node_sums, rows), strict=True)]
    highs = [max(column) for column in zip(*map(node_highs, rows), strict=True)]
    return met_nodes(sums, highs)


def node(cpu: float, power: float, memory: float = 50.0) -> NodeRow:
    """A node of two GPUs."""
    return NodeRow(1, cpu, 1.0, 2.0, memory, 2, 150.0, 2, power, 70.0, 60.0)


def test_nodes_meet_as_the_table_of_metrics_says() -> None:
    found = system(meet([node(20, 800), NO_NODE, node(40, 600, 90.0), NO_NODE]), 4, 100.0)
    assert found == {
        "system/cpu_pct": 30,
        "system/memory_pct": 90,
        "system/network_sent_mib_per_s": 2,
        "system/network_received_mib_per_s": 4,
        "system/gpu_utilization_pct": 75,
        "system/gpu_memory_gib": 70,
        "system/gpu_power_w": 1400,
        "system/gpu_temperature_c": 60,
        "system/energy_j_per_sample": 14,
    }


def test_what_no_node_knows_is_null_and_energy_takes_every_gpu_s_power() -> None:
    found = system(meet([NodeRow(1, 20.0, 0.0, 0.0, 50.0)]), 1, 100.0)
    assert {name for name, value in found.items() if value is None} == {
        "system/gpu_utilization_pct",
        "system/gpu_memory_gib",
        "system/gpu_power_w",
        "system/gpu_temperature_c",
        "system/energy_j_per_sample",
    }
    assert system(meet([node(20, 800)]), 3, 100.0)["system/energy_j_per_sample"] is None, "one GPU says no power"
    assert system(meet([node(20, 800)]), 2, None)["system/energy_j_per_sample"] is None, "the first window has no rate"
    assert set(system(meet([NO_NODE, NO_NODE]), 2, 100.0).values()) == {None}, "before the first sample"


def test_the_sampler_measures_this_machine() -> None:
    sampler = sample_node(ALONE, torch.device("cpu"))
    assert sampler is not None
    deadline = time.monotonic() + LIMIT_S
    while not sampler.row().nodes:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    sampler.close()
    row = sampler.row()
    assert 0 <= row.cpu_pct <= 100 * (os.cpu_count() or 1)
    assert row.memory_pct is not None
    assert 0 < row.memory_pct < 100
    assert (row.gpus, row.gpu_memory_gib) == (0, None)


def test_one_rank_of_a_node_measures_it() -> None:
    assert sample_node(Place(3, 1, 4, 2), torch.device("cpu")) is None


def test_a_sampler_that_fails_says_so_once_and_nothing_else_happens(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(uuids: object) -> object:
        raise OSError("no /proc here")

    monkeypatch.setattr(node_sampler, "_gpu_reader", broken)
    sampler = sample_node(ALONE, torch.device("cpu"))
    assert sampler is not None
    sampler.close()
    assert sampler.row() is NO_NODE
    said = "warn   system metrics of this node are not measured: OSError: no /proc here; training continues\n"
    assert capsys.readouterr().err == said


class NotSupportedError(Exception):
    """What a GPU answers where it does not know."""


def refuse(handle: int) -> float:
    """A MIG instance has no power of its own."""
    raise NotSupportedError


def test_what_one_gpu_does_not_say_is_left_out() -> None:
    nvml = SimpleNamespace(
        NVMLError=NotSupportedError,
        NVML_TEMPERATURE_GPU=0,
        nvmlDeviceGetUtilizationRates=lambda h: SimpleNamespace(gpu=40 + h),
        nvmlDeviceGetPowerUsage=lambda h: refuse(h) if h == 1 else 350_500,
        nvmlDeviceGetMemoryInfo=lambda h: SimpleNamespace(used=(h + 1) * GIB),
        nvmlDeviceGetTemperature=lambda h, kind: refuse(h),
    )
    assert gpu_fields(nvml, [0, 1]) == {
        "gpus": 2,
        "gpu_utilization_pct": 81,
        "powered": 1,
        "gpu_power_w": 350.5,
        "gpu_memory_gib": 2,
        "gpu_temperature_c": None,
    }
