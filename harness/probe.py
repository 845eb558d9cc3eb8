"""One trial of find-batch: a few real steps at one micro-batch, on all ranks, and what they took. Started anew for each trial.

`python -m harness.probe RUN.yaml --micro 64 --passes 2 --seconds 2 --out FOLDER [--memory BYTES]`, under any launcher. Each rank
writes FOLDER/rank-N.json. A rank that runs out of memory says so there and ends with status 0: that is a result.
"""

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from harness.engine.engine import Engine
from harness.engine.open import open_engine
from harness.engine.process import join, leave, use_cpu
from harness.parts.data import Feed
from harness.parts.recipe import load_recipe
from harness.plan.config import BatchConfig, CheckpointConfig, Config, EvalConfig, ScalingConfig, ScheduleConfig
from harness.plan.decode import load
from harness.plan.errors import UserError
from harness.plan.order import Order, deals, derive
from harness.plan.plan import plan
from harness.plan.world import World, place

WARM_STEPS, LEAST_STEPS, MOST_STEPS = 2, 3, 1000
POLL_S = 0.01
OUT_OF_MEMORY = "out of memory"


def main(argv: Sequence[str]) -> int:
    """One rank of a trial; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m harness.probe", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", type=Path)
    parser.add_argument("--micro", type=int, required=True)
    parser.add_argument("--passes", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--memory", type=int)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    here = place(os.environ)
    told = args.out / f"rank-{here.rank}.json"
    cpu = use_cpu(os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"))
    try:
        if args.memory:
            _limit(args.memory, cpu, told)
        found = measure(load(args.run), cpu, args.micro, args.passes, args.seconds)
    except torch.OutOfMemoryError as e:
        _write(told, {"fits": False, "problem": f"{OUT_OF_MEMORY}: {str(e).splitlines()[0]}"})
        os._exit(0)  # the other ranks wait for this one in a collective: no clean way out of it
    except UserError as e:
        _write(told, {"fits": None, "problem": str(e)})
        return 2
    if args.memory and found["peak_bytes"] > args.memory:
        found |= {"fits": False, "problem": f"{OUT_OF_MEMORY}: {found['peak_bytes']:,} bytes at the peak"}
    _write(told, found)
    leave()
    return 0


def measure(config: Config, cpu: bool, micro: int, passes: int, seconds: float) -> dict[str, object]:
    """Steps of `passes` passes of `micro` samples on every rank: samples per second over all ranks, and this rank's peak memory."""
    here = place(os.environ)
    batch = here.size * micro * passes
    trial = _bare(config, batch, micro)
    world = World(here.size, here.nodes, "cpu" if cpu else "gpu", here.size)
    recipe = load_recipe(trial.recipe)
    data = recipe.data("train")
    planned = plan(trial, world, len(data))
    join(cpu)
    base = _reset_peak(cpu)
    engine = open_engine(trial, planned, recipe, cpu=cpu)
    key_seed = derive(trial.run.seed, 4) if recipe.augments else None
    feed = Feed(
        data,
        order=Order(len(data), derive(trial.run.seed, 3)),
        device=engine.device,
        dtype=engine.dtype,
        collate=recipe.collate,
        workers=recipe.workers,
        key_seed=key_seed,
    )
    dealt = deals(0, batch * MOST_STEPS, batch, micro, here.size, engine.rank, engine.processes)
    steps = feed.steps(dealt)

    def step() -> None:
        engine.step(next(steps)[1], planned.lr(0), False, close=True)
        engine.read()

    for _ in range(WARM_STEPS):
        step()
    begin, done, over = time.perf_counter(), 0, False
    while not over:
        step()
        done += 1
        late = time.perf_counter() - begin >= seconds and done >= LEAST_STEPS
        over = engine.any_rank(late or done + WARM_STEPS >= MOST_STEPS)
    rate = batch * done / (time.perf_counter() - begin)
    peak = _peak(cpu, engine)
    return {
        "fits": True,
        "peak_bytes": peak,
        "base_bytes": base,
        "samples_per_s": rate,
        "steps": done,
        "device": str(engine.device),
    }


def _bare(config: Config, batch: int, micro: int) -> Config:
    """The run with this batch, and nothing that bears on neither time nor memory of a step."""
    return replace(
        config,
        batch=BatchConfig(reference=batch, total=batch, micro=micro),
        scaling=ScalingConfig(rule="none", warmup_samples=0),
        schedule=ScheduleConfig(samples=batch * MOST_STEPS),
        eval=EvalConfig(),
        checkpoint=CheckpointConfig(),
    )


def _limit(limit: int, cpu: bool, told: Path) -> None:
    """Hold this process to `limit` bytes: torch's allocator on a GPU, resident memory on a CPU.

    A limit on address space (RLIMIT_AS) would count what torch maps and never touches. The kernel keeps the highest resident size
    exactly; the thread only ends the process soon after, before the machine runs short.
    """
    if not cpu:
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        torch.cuda.set_per_process_memory_fraction(min(limit / total, 1.0))
        return

    def watch() -> None:
        while True:
            if (now := _status("VmRSS")) > limit:
                _write(told, {"fits": False, "problem": f"{OUT_OF_MEMORY}: {now:,} bytes resident, the limit is {limit:,}"})
                os._exit(0)
            time.sleep(POLL_S)

    threading.Thread(target=watch, daemon=True).start()


def _reset_peak(cpu: bool) -> int:
    """Begin to count the peak anew; what is in use now."""
    if not cpu:
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_reserved()
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak(cpu: bool, engine: Engine) -> int:
    """The most that was in use, in bytes: reserved by torch's allocator on a GPU, resident on a CPU."""
    return _status("VmHWM") if cpu else torch.cuda.max_memory_reserved(engine.device)


def _status(name: str) -> int:
    """A size out of /proc/self/status, in bytes."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def _write(path: Path, tree: dict[str, object]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(tree))
    temporary.rename(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
