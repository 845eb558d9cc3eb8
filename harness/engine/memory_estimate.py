"""What a rank will need of memory, before there is one: a step on fake tensors, which have shapes and no contents.

torch's memory tracker (torch.distributed._tools) follows every storage through forward, backward and optimizer step; for fsdp the
model is sharded over a fake process group of the planned world; what DeepSpeed holds is simulated beside it.
Tensors alone: the context of a GPU, cuDNN's workspaces and the allocator's gaps come on top.
"""

import warnings
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer
from torch.testing._internal.distributed.fake_pg import FakeStore

from harness.config.errors import UserError
from harness.config.schema import Config
from harness.data.batch_tree import map_leaves, move
from harness.data.columns import Columns
from harness.data.feed import Data, Micro
from harness.data.sample_order import Chunk, keys
from harness.engine.fsdp import fsdp_mesh, shard_model
from harness.engine.interface import AUTOCAST, DTYPES
from harness.engine.loss_sums import LossSums
from harness.engine.memory_estimate_zero import ZeroMemory
from harness.modeling.optimizer import build_optimizer
from harness.modeling.prepare import prepare_model
from harness.plan.plan import Plan, plan
from harness.plan.world import World
from harness.recipes.base import Recipe, load_recipe
from harness.recipes.contract import Loss, fresh_model, own_optimizer, train_split

SLICED = ("zero1", "zero2", "zero3")
PASSES = 2
"""How many passes of an accumulated step are simulated: more passes need no more memory."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank. `weights`: the whole model in float32. `state` lies there between two steps (weights, moments, buffers of
    gradients), `peak` within one."""

    micro: int
    weights: int
    state: int
    peak: int


def predict(config: Config, world: World) -> Memory:
    """The memory of a rank of `world` under `config`. Raises UserError if the recipe cannot run on shapes alone."""
    recipe = load_recipe(config.recipe)
    data = train_split(recipe, config.run.seed)
    planned = plan(config, world, len(data))
    with _group(world.size):
        try:
            return _traced(config, planned, recipe, data)
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
        model = prepare_model(_built(recipe, _type(planned, config)), recipe, replace(config.compute, compile=False))
        if mesh is not None:
            shard_model(model, recipe, config, mesh)
        optimizer = own_optimizer(recipe, model, planned) or build_optimizer(planned, recipe, model, fused=False)
        beside = _beside(model, optimizer, planned, config)
        tracker: Any = FSDPMemTracker(model, optimizer) if sharded else MemTracker()
        external = (model, optimizer, micro.batch, *(beside.external() if beside else ()))
        tracker.track_inputs((micro.batch,)) if sharded else tracker.track_external(*external)
        with tracker, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the memory tracker warns of gradients that are gone already
            for number in range(2):
                _step(_Rank(config, planned, recipe, model, optimizer, beside), micro, tracker)
                if number == 0:
                    state = _total(tracker.get_tracker_snapshot("current"))
        peak = _total(tracker.get_tracker_snapshot("peak"))
    weights = 4 * sum(p.numel() for p in model.parameters())
    gathered, never = (beside.gathered, beside.never_whole) if isinstance(beside, ZeroMemory) else (0, 0)
    return Memory(planned.micro_batch, weights, state - gathered, peak - never)


@dataclass(frozen=True)
class _Rank:
    """A rank's model and optimizer, and what its backend holds `beside` them."""

    config: Config
    planned: Plan
    recipe: Recipe
    model: nn.Module
    optimizer: Optimizer
    beside: "ZeroMemory | Buckets | None"


def _step(rank: _Rank, micro: Micro, tracker: Any) -> None:
    """One step on fake tensors, as the plan's backend takes it."""
    config, planned, model, beside = rank.config, rank.planned, rank.model, rank.beside
    passes = min(planned.accumulate, PASSES)
    sums = LossSums(Loss(rank.recipe, whole=False), config, torch.float64, next(model.parameters()).device)
    for number in range(passes):
        last = number == passes - 1
        if beside:
            beside.last = last
        if isinstance(model, FSDPModule):  # as fsdp's passes do it
            model.set_requires_gradient_sync(last)
            model.set_reshard_after_backward(last or config.backend.reshard)
        total, _sums = sums.of(model, micro, 0.0)
        total.backward()  # type: ignore[no-untyped-call]
        del total, _sums
        tracker.reset_mod_stats()
        if isinstance(beside, ZeroMemory):
            beside.passed()
    if planned.backend == "zero0" and planned.processes > 1:
        sent = [torch.empty_like(p) for p in model.parameters()]  # DeepSpeed sends a copy of all gradients
        del sent
    if isinstance(beside, ZeroMemory):
        beside.step()
    else:
        if beside:
            beside.give()
        rank.optimizer.step()
        rank.optimizer.zero_grad(set_to_none=True)


@final
class Buckets:
    """DDP's buckets, which stay allocated: gradients of the last pass are copied into them, those of earlier passes are held beside
    them."""

    def __init__(self, model: nn.Module) -> None:
        self.last = True
        weights = [p for p in model.parameters() if p.requires_grad]
        self._held = [(p, torch.empty_like(p)) for p in weights]
        for p in weights:
            p.register_post_accumulate_grad_hook(self._arrived)  # type: ignore[no-untyped-call]

    def external(self) -> list[Tensor]:
        """What is there before the first step."""
        return [held for _, held in self._held]

    def give(self) -> None:
        """Hand the held gradients to the optimizer."""
        for p, held in self._held:
            p.grad = held

    def _arrived(self, p: Tensor) -> None:
        if self.last:
            p.grad = None


def _beside(model: nn.Module, optimizer: Optimizer, planned: Plan, config: Config) -> ZeroMemory | Buckets | None:
    """What the plan's backend holds besides weights, gradients and the optimizer's state."""
    if planned.backend in SLICED:
        return ZeroMemory(model, optimizer, planned, config.backend)
    return Buckets(model) if planned.backend == "ddp" and planned.processes > 1 else None


def _type(planned: Plan, config: Config) -> torch.dtype:
    """The type of the weights that passes run with."""
    half = AUTOCAST.get(config.precision) if planned.backend in SLICED else None
    return half or DTYPES[config.precision]


def _built(recipe: Recipe, dtype: torch.dtype) -> nn.Module:
    """The model in its type from the start: a fake one cannot be cast."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return fresh_model(recipe)
    finally:
        torch.set_default_dtype(before)


def _total(snapshot: dict[torch.device, dict[str, int]]) -> int:
    """All bytes of a snapshot, over devices."""
    return sum(size for kinds in snapshot.values() for kind, size in kinds.items() if kind == "Total")


def _batch(recipe: Recipe, data: Data, micro: int, dtype: torch.dtype) -> Any:
    """A real micro-batch, to know its shapes."""
    index = [n % len(data) for n in range(micro)]
    batch = data.take(torch.tensor(index)) if isinstance(data, Columns) else recipe.collate([data[i] for i in index])
    if recipe.augments and isinstance(batch, MutableMapping):
        batch["key"] = torch.from_numpy(keys(0, 0, micro))
    return move(batch, torch.device("cpu"), dtype)


def _faked(batch: Any, fake: FakeTensorMode) -> Any:
    """A batch without its contents."""
    return map_leaves(lambda leaf: fake.from_tensor(leaf) if isinstance(leaf, Tensor) else leaf, batch)


@contextmanager
def _group(size: int) -> Iterator[None]:
    """A process group of `size` ranks of which none exists, where this process has no group yet."""
    if dist.is_initialized():
        raise RuntimeError("a prediction needs a process of its own: this one has joined a process group")
    dist.init_process_group("fake", rank=0, world_size=size, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()
