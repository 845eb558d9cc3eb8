"""What one GPU gives: tokens a second by hand and by us, with everything reported and with nothing; MFU; the stall of a checkpoint.

`make bench-gpu` writes configs/results/gpu.json, and aims at 8 minutes. A byte-level GPT of about 124 M and 1 B parameters in bf16,
eager and compiled. The hand loop runs before and after ours, so that a GPU whose clock drifts is seen.
`--stand-in` runs all of it on a CPU with a model that is tiny: its numbers mean nothing, and are printed and not written.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.config.loader import decode
from harness.config.schema import Config
from harness.data.feed import Table
from harness.data.sample_order import Order, derive
from harness.distributed.process_group import leave
from harness.plan.device_peaks import peak_tflops
from harness.plan.plan import plan
from harness.plan.world import World
from harness.recipes.base import load_recipe
from harness.recipes.bytes_lm import BytesLM
from harness.telemetry.events import Event, Windowed
from harness.training.loop import train
from harness.watch.journal_writer import Journal
from tests.bench.peers.__main__ import machine
from tests.support.processes import ROOT

OUT = ROOT / "configs" / "results" / "gpu.json"
WINDOW = 10
"""Steps from one reading of the device to the next."""


@dataclass(frozen=True)
class Size:
    """A GPT: `batch` rows of `context` bytes make a step."""

    width: int
    depth: int
    heads: int
    context: int
    batch: int
    windows: int


SIZES = {"124M": Size(768, 17, 12, 1024, 32, 12), "1B": Size(2048, 20, 16, 1024, 16, 8)}
STAND_IN = {"tiny": Size(32, 2, 2, 32, 4, 4)}


@dataclass(frozen=True)
class Speed:
    """Tokens a second of each window after the first two, in which kernels are chosen and compiled: the median, least and most."""

    median: float
    least: float
    most: float


def config(size: Size, device: str, *, compiled: bool, reported: bool, save_every: int | None = None) -> Config:
    """The run file of one measurement. `reported` false: no noise scale, and the device is read four times in the run."""
    samples = size.batch * WINDOW * size.windows
    every = WINDOW if reported else WINDOW * size.windows // 4
    knobs = {"width": size.width, "depth": size.depth, "heads": size.heads, "context": size.context, "max_bytes": 4_000_000}
    return decode(
        {
            "recipe": {"use": "bytes_lm"} | knobs,
            "batch": {"reference": size.batch, "total": size.batch},
            "optim": {"name": "adamw", "lr": 3e-4, "clip": 1.0},
            "schedule": {"samples": samples},
            "scaling": {"warmup_samples": size.batch},
            "precision": "bf16" if device == "cuda" else "fp32",
            "compute": {"compile": compiled},
            "eval": {"every_samples": samples},
            "checkpoint": {"every_samples": save_every} if save_every else {},
            "watch": {"wandb": "off", "every_steps": every, "noise_scale": reported},
        }
    )


def ours(size: Size, device: str, *, compiled: bool, reported: bool) -> tuple[Speed, float]:
    """(our speed, waits of the host for the device in a window)."""
    run = config(size, device, compiled=compiled, reported=reported)
    ends, waits = [], 0.0
    with tempfile.TemporaryDirectory() as folder, closing(Journal(Path(folder) / "events.jsonl")) as journal:
        for event in events(run, device):
            if reported:
                journal(event)
            if isinstance(event, Windowed):
                ends.append(time.perf_counter())
                waits = event.metrics["throughput/host_sync_count"] or 0.0
    return speed(size, ends, run.watch.every_steps), waits


def events(run: Config, device: str, folder: Path | None = None) -> Iterator[Event]:
    """A run in this process, on the device."""
    world = World(1, device="cpu" if device == "cpu" else "gpu")
    yield from train(run, plan(run, world), cpu=device == "cpu", folder=folder)
    leave()


def by_hand(size: Size, device: str, *, compiled: bool) -> Speed:
    """The loop that a person writes: autocast, fused AdamW, clipping; the loss is read once a window."""
    recipe = load_recipe(config(size, device, compiled=compiled, reported=False).recipe)
    assert isinstance(recipe, BytesLM)
    torch.manual_seed(derive(0, 1))
    model = recipe.model().to(device)
    step: nn.Module = torch.compile(model) if compiled else model  # type: ignore[assignment]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    ends, batches = [], rows(recipe, size, device)
    for number in range(1, size.windows * WINDOW + 1):
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            total, count = recipe.loss(step, next(batches))
            loss = total / count
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if number % WINDOW == 0:
            assert loss.isfinite()
            ends.append(time.perf_counter())
    return speed(size, ends, WINDOW)


def rows(recipe: BytesLM, size: Size, device: str) -> Iterator[dict[str, Tensor]]:
    """Batches on the device, copied from pinned memory where that is a GPU."""
    data = recipe.data("train")
    assert isinstance(data, Table)
    order, start = Order(len(data), derive(0, 3)), 0
    while True:
        batch = data.take(torch.from_numpy(order.take(start, start + size.batch)))
        pinned = {name: column.pin_memory() if device == "cuda" else column for name, column in batch.items()}
        yield {name: column.to(device, non_blocking=True) for name, column in pinned.items()}
        start += size.batch


def speed(size: Size, ends: list[float], steps: int) -> Speed:
    """Tokens a second, by the times at which windows of some steps ended."""
    tokens = size.batch * size.context * steps
    each = [tokens / (after - before) for before, after in pairwise(ends[1:])]
    return Speed(statistics.median(each), min(each), max(each))


def matmul_tflops(device: str) -> float:
    """What the device gives on one large product: bf16 8192 x 8192 on a GPU; the best of ten."""
    n, dtype = (8192, torch.bfloat16) if device == "cuda" else (512, torch.float32)
    a = torch.randn(n, n, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(10):
        begin = time.perf_counter()
        (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - begin)
    return 2 * n**3 / best / 1e12


def checkpoint_stall(size: Size, device: str) -> dict[str, float]:
    """Seconds that training stood still for each checkpoint, as the run itself reports them: least, median and most."""
    run = config(size, device, compiled=False, reported=True, save_every=size.batch * WINDOW)
    with tempfile.TemporaryDirectory() as folder:
        stalls = [
            stall
            for event in events(run, device, Path(folder))
            if isinstance(event, Windowed) and (stall := event.metrics.get("reliability/checkpoint_block_s"))
        ]
    return {"least": min(stalls), "median": statistics.median(stalls), "most": max(stalls)}


def row(name: str, size: Size, device: str, *, compiled: bool, peak: float | None) -> dict[str, Any]:
    """One size, eager or compiled."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = by_hand(size, device, compiled=compiled)
    reported, waits = ours(size, device, compiled=compiled, reported=True)
    silent, _ = ours(size, device, compiled=compiled, reported=False)
    after = by_hand(size, device, compiled=compiled)
    hand = (before.median + after.median) / 2
    recipe = load_recipe(config(size, device, compiled=compiled, reported=False).recipe)
    flops = recipe.flops_per_item()
    assert flops is not None
    speeds = {"by hand, before": before, "all reported": reported, "nothing": silent, "by hand, after": after}
    return {
        "size": name,
        "compiled": compiled,
        "tokens_per_s": {what: asdict(found) for what, found in speeds.items()},
        "ratio_all_reported": reported.median / hand,
        "ratio_nothing_reported": silent.median / hand,
        "mfu_pct": None if peak is None else 100 * reported.median * flops / peak / 1e12,
        "tflops": reported.median * flops / 1e12,
        "host_waits_per_window": waits,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None,
    }


def main() -> int:
    """Measure and write. Status 2 where there is no GPU and no stand-in is asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu", description=__doc__)
    parser.add_argument("--stand-in", action="store_true", help="run all of it on a CPU with a tiny model")
    device = "cpu" if parser.parse_args().stand_in else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        print("error: there is no GPU here: give --stand-in to run all of it on a CPU")
        return 2
    gpu = torch.cuda.get_device_name() if device == "cuda" else "none"
    known = peak_tflops(gpu, "bf16", tf32=False)
    peak = known[0] if known else None
    sizes, compiled = (SIZES, (False, True)) if device == "cuda" else (STAND_IN, (False,))
    found = {
        "command": "make bench-gpu",
        "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": machine() | {"gpu": gpu, "torch": torch.__version__, "cuda": torch.version.cuda, "peak_tflops": peak},
        "matmul_tflops": matmul_tflops(device),
        "rows": [row(name, size, device, compiled=c, peak=peak) for name, size in sizes.items() for c in compiled],
        "checkpoint_stall_s": checkpoint_stall(next(iter(sizes.values())), device),
    }
    text = json.dumps(found, indent=1)
    print(text)
    if device == "cuda":
        OUT.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
