"""Worker of test_backends: one stage of its launches on the processes that are here; rank 0 writes what each step said."""

import json
import os
import shutil
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.optim.optimizer import register_optimizer_step_pre_hook

from harness.checkpoint.tensor_slices import SliceReader, TensorSlice, whole
from harness.config.loader import decode
from harness.data.feed import Micro
from harness.data.sample_order import Chunk
from harness.distributed.process_group import agree, gather, join, leave
from harness.engine.factory import open_engine
from harness.engine.interface import Engine
from harness.plan.plan import plan
from harness.plan.world import World, place
from harness.recipes.base import load_recipe
from harness.supervision.exit_codes import end_orderly
from harness.telemetry.events import Evaluated, Noticed, Stepped
from harness.training.loop import train
from tests.dist.workers.layouts import config

FIRST, SECOND = 20, 35
"""Steps after which a run is saved, to be taken up by another backend."""

RUNS = {
    "sgd": ("sgd", "fp32", 16),
    "adamw": ("adamw", "fp32", 16),
    "bf16": ("sgd", "bf16", 16),
    "fp64": ("sgd", "fp64", 8),
}
"""Optimizer, precision, micro-batch: two passes of 16 on each of 2 ranks, or four of 8."""

LARGER: dict[str, Any] = {"batch": {"reference": 16, "total": 192, "micro": 8}, "run": {"stop_after_steps": 5}}
"""The same run at k = 12 with twelve passes of 8 on each of 2 ranks."""

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


def told(name: str, which: str, texts: str, nodes: int = 1, **extra: dict[str, Any]) -> Told:
    """Train one run on the processes that are here: its steps, the rates used and planned, the validations, the traffic."""
    here = place(os.environ)
    c = decode(config("bytes_lm", *RUNS[which], texts) | {"backend": {"name": name}} | extra)
    p = plan(c, World(here.size, nodes, "cpu", here.size))
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
        "notices": [e.message for e in events if isinstance(e, Noticed)],
    }


def gathered(engine: Engine) -> dict[str, torch.Tensor]:
    """The whole state, on every rank."""
    mine = [(p.name, p.shape, p.start, p.data.detach().clone()) for p in engine.pieces()]
    source = SliceReader.of(TensorSlice(*piece) for rank in gather(mine) for piece in rank)
    return {name: source.whole(name) for name in source}


def poisoned(section: dict[str, Any], texts: str) -> Told:
    """A good step, one whose loss is NaN on the last rank only, and a good one: which tensors of the whole state each moved.

    Then an evaluation, and back to the state after the first: which tensors are not as they were.
    """
    here = place(os.environ)
    c = decode(config("bytes_lm", *RUNS["adamw"], texts) | {"backend": section})
    engine = open_engine(c, plan(c, World(here.size, 1, "cpu", here.size)), load_recipe(c.recipe), cpu=True)
    batch = {"tokens": torch.arange(2 * 33).reshape(2, 33).to(torch.uint8), "length": torch.tensor([33, 20])}
    states = []
    for bad in (False, here.rank == here.size - 1, False):
        hook = engine.model.register_forward_hook(lambda _m, _a, out, bad=bad: out * float("nan") if bad else out)
        engine.step([Micro(batch, Chunk(0, 2))], 0.01, False)
        hook.remove()
        states.append(gathered(engine))
    moved = [[n for n in a if not torch.equal(a[n], b[n])] for a, b in pairwise(states)]
    recipe = load_recipe(c.recipe)
    with torch.no_grad():
        recipe.loss(engine.model, batch)
    engine.load(SliceReader.of(whole(name, tensor) for name, tensor in states[0].items()))
    back = gathered(engine)
    lost = [n for n in states[0] if not torch.equal(back[n], states[0][n])]
    return {"applied": [r.applied for r in engine.read().steps], "moved": moved, "names": list(states[0]), "lost": lost}


ZERO = ("zero0", "zero1", "zero2", "zero3")
SMALL = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
"""ZeRO-3 keeps small parameters whole on every rank; so that this model's lie in shards at all, none is small."""


def backend(name: str, **more: Any) -> dict[str, Any]:
    """The section `backend`."""
    return {"name": name} | ({"deepspeed": SMALL} if name == "zero3" else {}) | more


def fork(run: Path, copy: Path) -> None:
    """Copy a run folder, once for all ranks."""
    if place(os.environ).rank == 0:
        shutil.copytree(run, copy)
    agree("")


def zero(folder: Path, texts: str) -> dict[str, Told]:
    """All runs of all stages; offloaded ones; each resumes from ddp's checkpoint, saves for ddp, and from its own."""
    results = {}
    for name in ZERO:
        for run in ("sgd", "adamw", "bf16"):
            results[f"{name} {run}"] = told(name, run, texts, backend=backend(name))
        fork(folder / "crossed", folder / f"crossed-{name}")
        crossed = {"dir": str(folder / f"crossed-{name}"), "stop_after_steps": SECOND - FIRST}
        results[f"{name} crossed"] = told(name, "adamw", texts, backend=backend(name), run=crossed)
        own = {"dir": str(folder / f"own-{name}")}
        told(name, "adamw", texts, backend=backend(name), run=own | {"stop_after_steps": FIRST})
        results[f"{name} own"] = told(name, "adamw", texts, backend=backend(name), run=own | {"stop_after_steps": 5})
        results[f"{name} poisoned"] = poisoned(backend(name), texts)
        results[f"{name} larger"] = told(name, "sgd", texts, backend=backend(name), **LARGER)
    for name, what in (("zero1", "optimizer"), ("zero2", "optimizer"), ("zero3", "all")):
        offloaded = backend(name, offload=what)
        results[f"{name} offload"] = told(name, "adamw", texts, backend=offloaded)
        results[f"{name} offload poisoned"] = poisoned(offloaded, texts)
    return results


def fsdp(folder: Path, texts: str) -> dict[str, Told]:
    """All runs; one that frees no weights; one that resumes from ddp's checkpoint, one from its own; and the poisoned step."""
    results = {run: told("fsdp", run, texts) for run in RUNS}
    results["larger"] = told("fsdp", "sgd", texts, **LARGER)
    results["kept"] = told("fsdp", "sgd", texts, backend={"name": "fsdp", "reshard": False}, run={"stop_after_steps": 5})
    results["freed"] = told("fsdp", "sgd", texts, run={"stop_after_steps": 5})
    fork(folder / "crossed", folder / "crossed-fsdp")
    crossed = {"dir": str(folder / "crossed-fsdp"), "stop_after_steps": SECOND - FIRST}
    results["crossed"] = told("fsdp", "adamw", texts, run=crossed, eval={"every_samples": 64 * 5})  # saved just after an evaluation
    own = str(folder / "own")
    told("fsdp", "adamw", texts, run={"dir": own, "stop_after_steps": FIRST})
    results["own"] = told("fsdp", "adamw", texts, run={"dir": own})
    return results | {"poisoned": poisoned(backend("fsdp"), texts)}


OPTIONS: dict[str, dict[str, Any]] = {
    "static_graph": {"backend": backend("ddp", static_graph=True, bucket_mb=1)},
    "compress bf16": {"backend": backend("ddp", compress="bf16")},
    "compress powersgd": {"backend": backend("ddp", compress="powersgd")},
    "recompute ddp": {"compute": {"recompute": True}},
    "recompute fsdp": {"backend": backend("fsdp"), "compute": {"recompute": True}},
    "recompute zero3": {"backend": backend("zero3"), "compute": {"recompute": True}},
}
"""Settings that change how a run is computed, not what comes out."""


def options(texts: str) -> dict[str, Told]:
    """The first steps of the run `sgd` with each option; and the poisoned step with the gradients compressed."""
    results = {}
    for name, sections in OPTIONS.items():
        results[name] = told(
            sections.get("backend", backend("ddp"))["name"], "sgd", texts, **sections, run={"stop_after_steps": 10}
        )
    results["poisoned"] = poisoned(backend("ddp", compress="powersgd"), texts)
    return results


def nodes(folder: Path, texts: str) -> dict[str, Told]:
    """On four ranks as two nodes of two: shards within a node, a copy per node; saved, and taken up by plain shards."""
    hsdp, own = backend("fsdp", shard="node"), str(folder / "hsdp")
    results = {"hsdp": told("fsdp", "adamw", texts, nodes=2, backend=hsdp, run={"dir": own, "stop_after_steps": 10})}
    results["fsdp"] = told("fsdp", "adamw", texts, run={"dir": own, "stop_after_steps": 5})
    results["hsdp again"] = told("fsdp", "adamw", texts, nodes=2, backend=hsdp, run={"dir": own, "stop_after_steps": 5})
    return results


def main(stage: str, folder: Path, texts: str) -> None:
    """`ddp`: the references, on one process. `fsdp`: on two. `back`: ddp, and fsdp alone, go on from what two ranks saved."""
    torch.set_num_threads(1)
    join(cpu=True)
    register_optimizer_step_pre_hook(lambda o, _a, _k: used.append(o.param_groups[0]["lr"]))
    for kind, names in COLLECTIVES.items():
        name = next(n for n in names if n in vars(dist))
        setattr(dist, name, _counted(kind, getattr(dist, name)))
    results: dict[str, Told] = {}
    if stage == "ddp":
        results = {run: told("ddp", run, texts) for run in RUNS} | {"larger": told("ddp", "sgd", texts, **LARGER)}
        told("ddp", "adamw", texts, run={"dir": str(folder / "crossed"), "stop_after_steps": FIRST})
    elif stage == "fsdp":
        results = fsdp(folder, texts)
    elif stage == "zero":
        results = zero(folder, texts)
    elif stage == "options":
        results = options(texts)
    elif stage == "compiled":
        for name in ("ddp", "fsdp", "zero0", "zero1", "zero2"):
            limit: dict[str, Any] = {"stop_after_steps": 5}
            results[name] = told(name, "sgd", texts, backend=backend(name), compute={"compile": True}, run=limit)
    elif stage == "nodes":
        results = nodes(folder, texts)
    else:
        for name in ("ddp", "fsdp"):
            fork(folder / "crossed-fsdp", folder / name)
            after = {"ddp": "ddp after fsdp", "fsdp": "fsdp"}[name]
            results[after] = told(name, "adamw", texts, run={"dir": str(folder / name)})
        for name in ZERO:
            results[f"ddp after {name}"] = told("ddp", "adamw", texts, run={"dir": str(folder / f"crossed-{name}")})
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
    end_orderly(0)
