"""Worker of test_backends: one stage of its launches on the processes that are here; rank 0 writes what each step said."""

import json
import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.optim.optimizer import register_optimizer_step_pre_hook

from harness.engine.engine import Engine
from harness.engine.open import open_engine
from harness.engine.pieces import Piece, Source, whole
from harness.engine.process import gather, join, leave
from harness.parts.data import Micro
from harness.parts.recipe import load_recipe
from harness.plan.decode import decode
from harness.plan.order import Chunk
from harness.plan.plan import plan
from harness.plan.world import World, place
from harness.stats.events import Evaluated, Stepped
from harness.train import train
from tests.dist.layouts import config

FIRST, SECOND = 20, 35
"""Steps after which a run is saved, to be taken up by another backend."""

RUNS = {
    "sgd": ("sgd", "fp32", 16),
    "adamw": ("adamw", "fp32", 16),
    "bf16": ("sgd", "bf16", 16),
    "fp64": ("sgd", "fp64", 8),
}
"""Optimizer, precision, micro-batch: two passes of 16 on each of 2 ranks, or four of 8."""

Told = dict[str, Any]
used: list[float] = []
"""The rates that the optimizer's groups had when it stepped."""
COLLECTIVES = {
    "reduce": ("reduce_scatter_single", "reduce_scatter_tensor"),
    "gather": ("all_gather_single", "all_gather_into_tensor"),
}
"""What fully_shard calls, in torch 2.13 and before."""
traffic: Counter[str] = Counter()
"""How often each was called."""


def told(name: str, which: str, texts: str, **extra: dict[str, Any]) -> Told:
    """Train one run on the processes that are here: its steps, the rates used and planned, the validations, the traffic."""
    here = place(os.environ)
    c = decode(config("bytes_lm", *RUNS[which], texts) | {"backend": {"name": name}} | extra)
    p = plan(c, World(here.size, 1, "cpu", here.size))
    used.clear()
    traffic.clear()
    events = list(train(c, p, cpu=True, folder=Path(c.run.dir) if c.run.dir else None))
    steps = [e for e in events if isinstance(e, Stepped)]
    return {
        "steps": [e.metrics for e in steps],
        "used": list(used),
        "planned": [p.lr_at(e.samples - int(e.metrics["batch/samples"])) for e in steps],
        "eval": [e.metrics["eval/loss"] for e in events if isinstance(e, Evaluated)],
        "traffic": dict(traffic),
    }


def gathered(engine: Engine) -> dict[str, torch.Tensor]:
    """The whole state, on every rank."""
    mine = [(p.name, p.shape, p.start, p.data.detach().clone()) for p in engine.pieces()]
    source = Source.of(Piece(*piece) for rank in gather(mine) for piece in rank)
    return {name: source.whole(name) for name in source}


def poisoned(backend: str, texts: str) -> Told:
    """A good step, one whose loss is NaN on the last rank only, and a good one: which tensors of the whole state each moved.

    Then an evaluation, and back to the state after the first: which tensors are not as they were.
    """
    here = place(os.environ)
    c = decode(config("bytes_lm", *RUNS["adamw"], texts) | {"backend": {"name": backend}})
    engine = open_engine(c, plan(c, World(here.size, 1, "cpu", here.size)), load_recipe(c.recipe), cpu=True)
    batch = {"tokens": torch.arange(2 * 33).reshape(2, 33).to(torch.uint8), "length": torch.tensor([33, 20])}
    states = []
    for bad in (False, here.rank == here.size - 1, False):
        hook = engine.model.register_forward_hook(lambda _m, _a, out, bad=bad: out * float("nan") if bad else out)
        engine.step([Micro(batch, Chunk(0, 2))], 0.01, False)
        hook.remove()
        states.append(gathered(engine))
    moved = [[n for n in a if not torch.equal(a[n], b[n])] for a, b in zip(states, states[1:], strict=False)]
    recipe = load_recipe(c.recipe)
    with torch.no_grad():
        recipe.loss(engine.model, batch)
    engine.load(Source.of(whole(name, tensor) for name, tensor in states[0].items()))
    back = gathered(engine)
    lost = [n for n in states[0] if not torch.equal(back[n], states[0][n])]
    return {"applied": [r.applied for r in engine.read()], "moved": moved, "names": list(states[0]), "lost": lost}


def fsdp(folder: Path, texts: str) -> dict[str, Told]:
    """All runs; one that frees no weights; one that goes on from ddp's checkpoint, one from its own; and the poisoned step."""
    results = {run: told("fsdp", run, texts) for run in RUNS}
    results["kept"] = told("fsdp", "sgd", texts, backend={"name": "fsdp", "reshard": False}, run={"stop_after_steps": 5})
    results["freed"] = told("fsdp", "sgd", texts, run={"stop_after_steps": 5})
    crossed = {"dir": str(folder / "crossed"), "stop_after_steps": SECOND - FIRST}
    results["crossed"] = told("fsdp", "adamw", texts, run=crossed, eval={"every_samples": 64 * 5})  # saved just after an evaluation
    own = str(folder / "own")
    told("fsdp", "adamw", texts, run={"dir": own, "stop_after_steps": FIRST})
    results["own"] = told("fsdp", "adamw", texts, run={"dir": own})
    return results | {"poisoned": poisoned("fsdp", texts)}


def main(stage: str, folder: Path, texts: str) -> None:
    """`ddp`: the references, on one process. `fsdp`: on two. `back`: ddp, and fsdp alone, go on from what two ranks saved."""
    torch.set_num_threads(1)
    join(cpu=True)
    register_optimizer_step_pre_hook(lambda o, _a, _k: used.append(o.param_groups[0]["lr"]))
    for kind, names in COLLECTIVES.items():
        name = next(n for n in names if n in vars(dist))
        setattr(dist, name, _counted(kind, getattr(dist, name)))
    if stage == "ddp":
        results = {run: told("ddp", run, texts) for run in RUNS}
        told("ddp", "adamw", texts, run={"dir": str(folder / "crossed"), "stop_after_steps": FIRST})
    elif stage == "fsdp":
        results = fsdp(folder, texts)
    else:
        results = {}
        for backend in ("ddp", "fsdp"):
            shutil.copytree(folder / "crossed", folder / backend)
            results[backend] = told(backend, "adamw", texts, run={"dir": str(folder / backend)})
    if place(os.environ).rank == 0:
        (folder / f"{stage}.json").write_text(json.dumps(results))
    leave()


def _counted(kind: str, real: Any) -> Any:
    def call(*args: Any, **options: Any) -> Any:
        traffic[kind] += 1
        return real(*args, **options)

    return call


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
