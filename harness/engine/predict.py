"""What a rank will need of memory, before there is one: a step on fake tensors, which have shapes and no contents.

torch's memory tracker (torch.distributed._tools) follows every storage through forward, backward and optimizer step; for fsdp the
model is sharded over a fake process group of the planned world. What DeepSpeed keeps is by formula (configs/results/memory.json).
Tensors alone: the context of a GPU, cuDNN's workspaces and the allocator's gaps come on top.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker
from torch.testing._internal.distributed.fake_pg import FakeStore

from harness.engine.base import summed
from harness.engine.engine import DTYPES
from harness.engine.fsdp import fsdp_mesh, shard_model
from harness.parts.compute import prepare_model
from harness.parts.data import Data, Micro, Table, move
from harness.parts.optim import build_optimizer
from harness.parts.recipe import Recipe, load_recipe
from harness.plan.config import Config
from harness.plan.errors import UserError
from harness.plan.order import Chunk, keys
from harness.plan.plan import Plan, plan
from harness.plan.world import World

PASSES = 2
"""Passes of a step that is accumulated: more take no more memory."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank. `weights`: the whole model in float32. `state` lies there between two steps (weights, moments, buffers of
    gradients), `peak` within one."""

    micro: int
    weights: int
    state: int
    peak: int


def predict(config: Config, world: World) -> Memory:
    """The memory of a rank of `world` under `config`. Raises UserError where the recipe cannot run on shapes alone."""
    recipe = load_recipe(config.recipe)
    data = recipe.data("train")
    planned = plan(config, world, len(data))
    with _group(world.size):
        try:
            traced = _traced(config, planned, recipe, data)
            return _in_zero(traced, planned) if planned.backend in ("zero1", "zero2", "zero3") else traced
        except (NotImplementedError, RuntimeError, TypeError, AttributeError) as e:
            at = f"the recipe does not run on shapes alone ({type(e).__name__}: {str(e).strip().splitlines()[0] if str(e) else ''})"
            raise UserError("--predict", at, "measure instead: widebatch find-batch, without --predict") from e


def _traced(config: Config, planned: Plan, recipe: Recipe, data: Data) -> Memory:
    """Two steps on fake tensors: the first makes the optimizer's state, the second is what all others are like."""
    batch = _batch(recipe, data, planned.micro_batch, DTYPES[config.precision])
    sharded = planned.backend == "fsdp"
    copies = planned.nodes if config.backend.shard == "node" else 1
    mesh = fsdp_mesh("cpu", planned.world_size, copies) if sharded else None
    with FakeTensorMode() as fake:
        micro = Micro(_faked(batch, fake), Chunk(0, planned.micro_batch))
        model = prepare_model(_built(recipe, DTYPES[config.precision]), recipe, replace(config.compute, compile=False))
        if mesh is not None:
            shard_model(model, recipe, config, mesh)
        optimizer = recipe.optimizer(model, planned) or build_optimizer(planned, recipe, model, fused=False)
        tracker: Any = FSDPMemTracker(model, optimizer) if sharded else MemTracker()
        tracker.track_inputs((micro.batch,)) if sharded else tracker.track_external(model, optimizer, micro.batch)
        passes = min(planned.accumulate, PASSES)
        kept = planned.backend == "ddp" and planned.processes > 1
        with tracker:
            for number in range(2):
                for _ in range(passes):
                    total, _sums = summed(recipe, model, micro, 0.0, config, torch.float64)
                    total.backward()  # type: ignore[no-untyped-call]
                    del total, _sums
                    tracker.reset_mod_stats()
                optimizer.step()
                optimizer.zero_grad(set_to_none=not kept)
                if number == 0:
                    state = _total(tracker.get_tracker_snapshot("current"))
        peak = _total(tracker.get_tracker_snapshot("peak"))
    weights = 4 * sum(p.numel() for p in model.parameters())
    return Memory(planned.micro_batch, weights, state, peak)


def _built(recipe: Recipe, dtype: torch.dtype) -> nn.Module:
    """The model in its type from the start: a fake one cannot be cast."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return recipe.model()
    finally:
        torch.set_default_dtype(before)


def _in_zero(traced: Memory, planned: Plan) -> Memory:
    """From a whole copy to DeepSpeed's shares, by what each stage keeps (`python -m tests.bench_memory` measures it).

    In float32 stages 1 and 2 keep the weights whole and a share of master weights and moments, stage 3 a share of all and of the
    gradients. In bf16 the weights that compute have 2 bytes, and stage 1 keeps 4 more for gradients. The rest of a step is as in a
    whole copy: nothing is known here of DeepSpeed's buckets.
    """
    whole, ranks = traced.weights, planned.world_size
    moments = traced.state - whole
    low = whole if planned.precision == "fp32" else whole // 2
    if planned.backend == "zero3":
        state = (low + whole + moments + whole) // ranks
    else:
        extra = whole if planned.precision != "fp32" and planned.backend == "zero1" else 0
        state = low + extra + (whole + moments) // ranks
    return Memory(traced.micro, whole, state, state + traced.peak - traced.state)


def _total(snapshot: dict[torch.device, dict[str, int]]) -> int:
    """All bytes of a snapshot, over devices."""
    return sum(size for kinds in snapshot.values() for kind, size in kinds.items() if kind == "Total")


def _batch(recipe: Recipe, data: Data, micro: int, dtype: torch.dtype) -> Any:
    """A real micro-batch, to know its shapes."""
    index = [n % len(data) for n in range(micro)]
    batch = data.take(torch.tensor(index)) if isinstance(data, Table) else recipe.collate([data[i] for i in index])
    if recipe.augments and isinstance(batch, dict):
        batch["key"] = torch.from_numpy(keys(0, 0, micro))
    return move(batch, torch.device("cpu"), dtype)


def _faked(batch: Any, fake: FakeTensorMode) -> Any:
    """A batch without its contents."""
    if isinstance(batch, Tensor):
        return fake.from_tensor(batch)
    if isinstance(batch, dict):
        return {name: _faked(part, fake) for name, part in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(_faked(part, fake) for part in batch)
    return batch


@contextmanager
def _group(size: int) -> Iterator[None]:
    """A process group of `size` ranks of which none exists, where this process has no group yet."""
    if dist.is_initialized():
        raise RuntimeError("a prediction wants a process of its own: this one has joined a group")
    dist.init_process_group("fake", rank=0, world_size=size, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()
