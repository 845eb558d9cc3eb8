"""Histograms of weights and gradients: every element in its bin, on one process and over shards, and nothing else in the step."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.config.loader import decode
from harness.engine import layer_histograms
from harness.engine.layer_histograms import LayerHistograms
from harness.plan.plan import plan
from harness.plan.world import World
from harness.telemetry.events import Histograms, Windowed
from harness.telemetry.histograms import BINS, EDGES, Histogram
from harness.training.loop import train


def counted(tensor: torch.Tensor, scale: float = 1.0) -> Histogram:
    """The histogram of one tensor."""
    h = LayerHistograms(["a"])
    h.count("weights", [tensor], scale)
    return h.take(1, 1)["weights/a"]


def place(h: Histogram) -> list[tuple[float, float, int]]:
    """(edge below, edge above, count) of the bins that hold something."""
    return [(low, high, n) for low, high, n in zip(h.edges[:-1], h.edges[1:], h.counts, strict=True) if n]


def test_the_bins_touch_and_are_symmetric() -> None:
    assert len(EDGES) == BINS + 1
    assert sorted(EDGES) == EDGES
    assert [-edge for edge in reversed(EDGES)] == EDGES


@given(st.lists(st.floats(-(2.0**15), 2.0**15, width=32), min_size=1, max_size=50))
def test_every_element_lies_in_its_bin(values: list[float]) -> None:
    for value in values:
        ((low, high, count),) = place(counted(torch.tensor([value])))
        assert count == 1
        assert low <= value <= high
    assert sum(counted(torch.tensor(values)).counts) == len(values)


def test_what_is_not_finite_is_left_out_and_what_is_too_large_is_in_the_last_bin() -> None:
    h = counted(torch.tensor([float("nan"), float("inf"), 1e30, -1e30, 0.0]))
    assert place(h) == [(EDGES[0], EDGES[1], 1), (EDGES[BINS // 2], EDGES[BINS // 2 + 1], 1), (EDGES[-2], EDGES[-1], 1)]
    assert counted(torch.tensor([float("nan")])) == Histogram([], [])


def test_gradients_are_scaled_as_the_step_scales_them() -> None:
    assert place(counted(torch.tensor([48.0]), 0.25)) == [(8.0, 16.0, 1)]


def test_a_large_tensor_is_counted_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.randn(1000)
    whole = counted(tensor)
    monkeypatch.setattr(layer_histograms, "CHUNK", 7)
    assert counted(tensor) == whole


def run(histograms: bool) -> list[object]:
    """The events of 20 steps."""
    config = decode(
        {
            "recipe": {"use": "digits", "width": 4},
            "batch": {"reference": 32, "total": 32},
            "optim": {"lr": 0.01},
            "schedule": {"samples": 640},
            "watch": {"wandb": "off", "every_steps": 5, "histograms": histograms},
        }
    )
    return list(train(config, plan(config, World(1, device="cpu")), cpu=True))


def test_each_window_has_those_of_its_last_step_and_the_run_is_the_same() -> None:
    told, without = run(True), run(False)
    windows = [e for e in told if isinstance(e, Windowed)]
    found = [e for e in told if isinstance(e, Histograms)]
    assert [e.step for e in found] == [e.step for e in windows]
    assert not [e for e in without if isinstance(e, Histograms)]
    same = ("train/loss", "train/param_norm", "train/grad_norm", "throughput/host_sync_count")
    others = [e for e in without if isinstance(e, Windowed)]
    assert [[w.metrics[n] for n in same] for w in windows] == [[w.metrics[n] for n in same] for w in others]
    last = found[-1].histograms
    assert {name.partition("/")[0] for name in last} == {"weights", "gradients"}
    assert all(sum(h.counts) > 0 for h in last.values())
    for kind, metric in (("weights", "param_norm"), ("gradients", "grad_norm")):
        squares = [n * x * x for name, h in last.items() if name.startswith(kind) for n, x in zip(h.counts, h.middles, strict=True)]
        norm = sum((windows[-1].metrics[f"train/group{g}_{metric}"] or 0.0) ** 2 for g in (0, 1)) ** 0.5
        # the middle of an octave is within a factor of 1.5 of what lies in it
        assert norm / 1.5 < sum(squares) ** 0.5 < 1.5 * norm
