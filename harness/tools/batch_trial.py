"""One trial of find-batch: a few real steps at one micro-batch, on all ranks, and what they took. Started again for each trial.

`python -m harness.tools.batch_trial RUN.yaml --micro 64 --passes 2 --seconds 2 --out FOLDER [--memory BYTES]`. Each rank
writes FOLDER/rank-N.json. A rank that runs out of memory says so there and ends with status 4: its launcher ends the others.
"""

import argparse
import json
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from harness.config.errors import UserError
from harness.config.loader import load
from harness.config.schema import BatchConfig, CheckpointConfig, Config, EvalConfig, ScalingConfig, ScheduleConfig
from harness.data.sample_order import step_shards
from harness.data.training_order import training_order
from harness.distributed.process_group import join, leave, out_of_memory
from harness.engine.device import use_cpu
from harness.engine.factory import open_engine
from harness.engine.interface import Engine
from harness.plan.plan import plan
from harness.plan.rank_env import settle
from harness.plan.world import World, place
from harness.recipes.base import load_recipe
from harness.recipes.contract import train_split
from harness.supervision.exit_codes import MEMORY, USER, end, run_rank
from harness.supervision.output_redirect import say
from harness.supervision.safe_files import write_own
from harness.training.feeds import open_feed

WARM_STEPS, LEAST_STEPS, MOST_STEPS = 2, 3, 1000
POLL_S = 0.01
OUT_OF_MEMORY = "out of memory"


def main(argv: Sequence[str]) -> int:
    """One rank of a trial; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m harness.tools.batch_trial", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", type=Path)
    parser.add_argument("--micro", type=int, required=True)
    parser.add_argument("--passes", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--memory", type=int)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    try:
        here = settle(os.environ)
    except UserError as e:
        say(f"error: {e}")
        return 2
    told = args.out / f"rank-{here.rank}.json"
    try:
        cpu = use_cpu(os.environ)
        if args.memory and cpu:
            _end_above(args.memory, told)
        found = measure(load(args.run), cpu, args.micro, args.passes, args.seconds, args.memory)
    except UserError as e:
        _write(told, {"fits": None, "problem": str(e)})
        return USER
    except Exception as e:
        if not out_of_memory(e):
            raise
        _write(told, {"fits": False, "problem": f"{OUT_OF_MEMORY}: {str(e).splitlines()[0]}"})
        end(MEMORY)  # the other ranks wait in a collective, so no orderly exit is possible
    if args.memory and found["peak_bytes"] > args.memory:
        found |= {"fits": False, "problem": f"{OUT_OF_MEMORY}: {found['peak_bytes']:,} bytes at the peak"}
    _write(told, found)
    leave()
    return 0


def measure(config: Config, cpu: bool, micro: int, passes: int, seconds: float, memory: int | None = None) -> dict[str, object]:
    """Steps of `passes` passes of `micro` samples on every rank: samples per second over all ranks, and this rank's peak memory.

    `memory`: how many bytes of its GPU this rank may use.
    """
    here = place(os.environ)
    batch = here.size * micro * passes
    trial = _bare(config, batch, micro)
    world = World(here.size, here.nodes, "cpu" if cpu else "gpu", here.size)
    recipe = load_recipe(trial.recipe)
    data = train_split(recipe, trial.run.seed)
    planned = plan(trial, world, len(data))
    device = join(cpu)
    if memory is not None and not cpu:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(memory / total, 1.0), device)
    base = _reset_peak(cpu)
    engine = open_engine(trial, planned, recipe, cpu=cpu)
    feed = open_feed(engine, recipe, trial, data, order=training_order(data, trial))
    shards = step_shards(0, batch * MOST_STEPS, batch, micro, here.size, engine.rank, engine.processes)
    steps = feed.steps(shards)

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


def _end_above(limit: int, told: Path) -> None:
    """Hold this process to `limit` bytes of resident memory, on a CPU.

    A limit on address space (RLIMIT_AS) would count what torch maps and never touches. The kernel keeps the highest resident size
    exactly; the thread only ends the process soon after, before the machine runs short.
    """

    def watch() -> None:
        while True:
            if (now := _status("VmRSS")) > limit:
                try:
                    _write(told, {"fits": False, "problem": f"{OUT_OF_MEMORY}: {now:,} bytes resident, the limit is {limit:,}"})
                finally:
                    end(MEMORY)
            time.sleep(POLL_S)

    threading.Thread(target=watch, daemon=True).start()


def _reset_peak(cpu: bool) -> int:
    """Reset the peak counter; returns the memory in use now."""
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
    write_own(path, json.dumps(tree))


if __name__ == "__main__":
    run_rank(main)
