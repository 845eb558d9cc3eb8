"""On one GPU: every backend and precision tells the losses of ddp in float32. Skipped where there is none."""

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.config.loader import decode
from harness.data.feed import Micro
from harness.distributed.process_group import leave, out_of_memory
from harness.engine.factory import open_engine
from harness.engine.interface import Limit
from harness.plan.plan import plan
from harness.plan.world import World
from harness.recipes.base import load_recipe
from harness.telemetry.events import Event, Stepped, Windowed
from harness.training.loop import train
from tests.unit import test_gpu_branches
from tests.unit.test_gpu_branches import FP16, config, micro, overflow, state

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


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_channels_last_resumes_exactly(optimizer: str, tmp_path: Path) -> None:
    """bf16 convolutions: CUDA's fused kernels refuse moments that lie otherwise than their weights."""
    optim: dict[str, Any] = {"name": optimizer, "lr": 0.01} | ({"momentum": 0.9} if optimizer == "sgd" else {})

    def run(folder: Path, **run: Any) -> list[float]:
        sections = {"compute": {"channels_last": True}, "optim": optim, "run": {"dir": str(folder)} | run}
        tree = {"recipe": {"use": "digits"}, "batch": {"reference": 32, "total": 32}, "schedule": {"samples": 640}}
        c = decode(tree | {"precision": "bf16", "watch": {"wandb": "off"}} | sections)
        found = losses(list(train(c, plan(c, World(1), 1437), cpu=False, folder=folder)))
        leave()
        return found

    whole = run(tmp_path / "whole")
    parts = run(tmp_path / "parts", stop_after_steps=7) + run(tmp_path / "parts")
    assert parts == pytest.approx(whole, rel=1e-6)


def on_gpu(number: int) -> Micro:
    """The pass of a step, on the GPU."""
    here = micro(number)
    return Micro({name: column.cuda() for name, column in here.batch.items()}, here.chunk)


def test_an_overflow_a_loss_that_is_not_finite_and_a_skip_move_nothing_in_fp16() -> None:
    c = config(FP16, nan=int(micro(1).batch["label"][0]))
    engine = open_engine(c, plan(c, World(1)), load_recipe(c.recipe), cpu=False)
    before = state(engine)
    with overflow(engine):
        engine.step([on_gpu(0)], 0.01, False)
    engine.step([on_gpu(1)], 0.01, False)
    engine.step([on_gpu(0)], 0.01, False, limit=Limit(1e-9, skip=True))
    after = state(engine)
    assert [n for n in before if n != "scaler/scale" and not torch.equal(before[n], after[n])] == []
    engine.step([on_gpu(0)], 0.01, False)
    assert all(torch.isfinite(t).all() for t in state(engine).values())
    assert [row.applied for row in engine.read().steps] == [0, 0, 0, 1]


def test_offloaded_shards_skip_a_step_that_is_not_finite_every_time() -> None:
    """The flag is on the device and the kernel on the host: a hundred times, as one that does not wait wins a race at times."""
    over = {"backend": {"name": "fsdp", "offload": "all"}, "optim": {"name": "adamw", "lr": 0.01}, "compute": {}}
    use = {"use": f"{test_gpu_branches.__file__}:Whole", "nan": float(micro(1).batch["label"][0])}
    c = config(over | {"recipe": use})
    engine = open_engine(c, plan(c, World(1)), load_recipe(c.recipe), cpu=False)
    engine.step([on_gpu(0)], 0.01, False)
    before = state(engine)
    for _ in range(100):
        engine.step([on_gpu(1)], 0.01, False)
    after = state(engine)
    assert [n for n in before if not torch.equal(before[n], after[n])] == []
    leave()


def test_memory_that_runs_out_is_known_whoever_says_so() -> None:
    """torch's allocator, and a call of CUDA's past it."""
    free, _ = torch.cuda.mem_get_info()
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2 * free, dtype=torch.uint8, device="cuda")
    assert out_of_memory(caught.value)
    with pytest.raises(RuntimeError) as caught:
        torch.cuda.check_error(2)  # cudaErrorMemoryAllocation
    assert out_of_memory(caught.value)
