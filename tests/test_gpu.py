"""On one GPU: every backend and precision tells the losses of ddp in float32. Skipped where there is none."""

from typing import Any

import pytest
import torch

from harness.engine.process import leave
from harness.plan.decode import decode
from harness.plan.plan import plan
from harness.plan.world import World
from harness.stats.events import Event, Stepped, Windowed
from harness.train import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here"),
    pytest.mark.filterwarnings("ignore"),
]
LIMITS = {"fp32": 1e-3, "bf16": 3e-2, "fp16": 3e-2}
CASES = [
    (backend, precision)
    for backend in ("ddp", "fsdp", "zero0", "zero1", "zero2", "zero3")
    for precision in LIMITS
    if not (precision == "fp16" and backend in ("fsdp", "zero0"))
]


def told(backend: str, precision: str, **sections: Any) -> list[Event]:
    """A short run of a small GPT on one GPU."""
    tree: dict[str, Any] = {
        "recipe": {"use": "bytes_lm", "width": 64, "depth": 2, "heads": 2, "context": 64, "max_bytes": 200_000},
        "batch": {"reference": 32, "total": 64, "micro": 32},
        "optim": {"name": "adamw", "lr": 1e-3, "clip": 1.0},
        "scaling": {"warmup_samples": 640},
        "schedule": {"samples": 1920},
        "precision": precision,
        "backend": {"name": backend},
        "watch": {"wandb": "off"},
    }
    config = decode(tree | sections)
    events = list(train(config, plan(config, World(1)), cpu=False))
    leave()
    return events


def losses(events: list[Event]) -> list[float]:
    """Losses of the steps that moved the weights; fp16 may skip some while it finds its scale."""
    return [e.metrics["train/loss"] for e in events if isinstance(e, Stepped)]


@pytest.mark.parametrize(("backend", "precision"), CASES)
def test_one_gpu_tells_the_losses_of_ddp_in_float32(backend: str, precision: str) -> None:
    whole, here = losses(told("ddp", "fp32")), told(backend, precision)
    assert losses(here)[-1] == pytest.approx(whole[-1], rel=LIMITS[precision])
    memory = [e.metrics["memory/gpu_peak_allocated_gib"] for e in here if isinstance(e, Windowed)]
    assert all(gib is not None and gib > 0 for gib in memory)


@pytest.mark.parametrize("section", [{"compute": {"compile": True}}, {"compute": {"tf32": True}}, {"compute": {"recompute": True}}])
def test_options_of_a_gpu_do_not_change_the_run(section: dict[str, Any]) -> None:
    assert losses(told("ddp", "fp32", **section))[-1] == pytest.approx(losses(told("ddp", "fp32"))[-1], rel=1e-2)


def test_a_step_waits_for_the_device_once_a_window() -> None:
    """Fused AdamW skips by a flag on the device: nothing but the reading of a window asks the host."""
    windows = [e for e in told("ddp", "bf16") if isinstance(e, Windowed)]
    assert {w.metrics["throughput/host_sync_count"] for w in windows[1:]} == {1.0}
