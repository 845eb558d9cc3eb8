"""Backend fsdp: weights, gradients and optimizer state lie in shards over the ranks (torch's FSDP2, `fully_shard`).

We call fully_shard ourselves: through Accelerate it is silently not FSDP on CPU ranks. Each block of the recipe is a unit: its
weights are gathered when it runs and freed after. Gradients are summed, not averaged: nothing has to be undone.

bf16: the gathered weights are bf16; the shards, the reductions and the accumulated gradients float32. Autocast over float32,
as ddp does it, would keep a cast copy of every weight for the backward, and so the whole model on every rank.
"""

import math
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.modules.batchnorm import _BatchNorm

from harness.engine.base import Sums, summed, told
from harness.engine.engine import AUTOCAST, DTYPES
from harness.engine.ledger import Number
from harness.engine.pieces import Piece, Source
from harness.engine.torch_step import TorchEngine
from harness.parts.compute import prepare_model
from harness.parts.data import Micro
from harness.parts.optim import build_optimizer
from harness.parts.recipe import Recipe, seed_torch
from harness.plan.config import Config
from harness.plan.errors import UserError
from harness.plan.order import derive
from harness.plan.plan import Plan


@final
class FsdpEngine(TorchEngine):
    """Data-parallel training with everything in shards. One process alone holds the only shard."""

    def __init__(self, config: Config, plan: Plan, recipe: Recipe, *, cpu: bool) -> None:
        super().__init__(config, plan, cpu=cpu)
        self._recipe = recipe
        if not dist.is_initialized():  # fully_shard wants a group, also of one
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            dist.init_process_group(backend, rank=0, world_size=1, store=dist.HashStore())  # type: ignore[attr-defined]
        self._mesh = fsdp_mesh(self.device.type, self.processes, plan.nodes if config.backend.shard == "node" else 1)
        seed_torch(derive(self.seed, 1))
        model = recipe.model().to(self.dtype)  # on the host: fully_shard moves it unit by unit
        self._model = prepare_model(model, recipe, config.compute)
        self._check_equal()
        self._root = shard_model(self._model, recipe, config, self._mesh)
        self.optimizer = recipe.optimizer(self._model, plan) or build_optimizer(
            plan, recipe, self._model, fused=self.device.type == "cuda"
        )
        self._params = [p for p in self._model.parameters() if p.requires_grad]
        self._keep_average()

    @property
    def model(self) -> nn.Module:
        """The recipe's own model; its parameters are DTensors."""
        return self._model

    def _check_equal(self) -> None:
        """Every rank cuts its shards out of its own copy, so the copies must be equal. Raises UserError."""
        state = [t.detach().double() for t in self._model.state_dict().values() if t.is_floating_point()]
        found = torch.stack([sum((t.sum() for t in state), torch.zeros(())), sum((t.abs().sum() for t in state), torch.zeros(()))])
        highest = torch.stack([found, -found]).to(self.device)
        dist.all_reduce(highest, dist.ReduceOp.MAX)
        if not torch.allclose(highest[0], -highest[1], rtol=1e-6, equal_nan=True):
            at = "model() gave other weights on other ranks, and fsdp cuts its shards out of all of them"
            raise UserError("recipe.use", at, "draw initial weights from torch's generators, which are seeded")

    def _units(self) -> list[FSDPModule]:
        return [m for m in self._model.modules() if isinstance(m, FSDPModule)]

    def _pass(self, micro: Micro, stop: float, last: bool) -> Sums:
        """See BaseEngine._pass."""
        self._root.set_requires_gradient_sync(last)
        self._root.set_reshard_after_backward(last or self.config.backend.reshard)
        total, sums = summed(self._recipe, self._model, micro, stop, self.config, torch.float64)
        total.backward()  # type: ignore[no-untyped-call]
        return told(sums)

    def _grads(self) -> list[Tensor]:
        """See TorchEngine._grads."""
        return [p.grad.to_local() for p in self._params if isinstance(p.grad, DTensor)]

    def _meet(self, grads: list[Tensor], local: Sums) -> tuple[Sums, Tensor, Number]:
        """See TorchEngine._meet. One all-reduce brings the sums and the norm: its square is the sum of the shards' squares."""
        square = nn.utils.get_total_norm(grads).to(self.device, torch.float64) ** 2 / self._copy()[1]
        met = self.reduce(torch.stack([*map(torch.as_tensor, local), square]))
        return told(met[:3]), met[3].sqrt(), 1 / met[1]

    def pieces(self) -> list[Piece]:
        """See Engine.pieces."""
        self._settle()
        return super().pieces()

    def load(self, source: Source) -> None:
        """See Engine.load."""
        self._settle()
        super().load(source)

    def _local(self, tensor: Tensor) -> Tensor:
        """See BaseEngine._local."""
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor

    def _copies(self) -> int:
        """See BaseEngine._copies."""
        return self._copy()[1]

    def _copy(self) -> tuple[int, int]:
        """(which copy of its shard a rank holds, how many there are): one for each node in HSDP."""
        return (self._mesh.get_local_rank("replicate"), self._mesh.size(0)) if self._mesh.ndim == 2 else (0, 1)

    def _span(self, shape: torch.Size) -> tuple[int, int]:
        """[first, last) of this rank's rows of a sharded tensor, as torch.chunk cuts them."""
        rows, shards = shape[0], self._mesh["shard"]
        share, place = -(-rows // shards.size()), shards.get_local_rank()
        return min(place * share, rows), min((place + 1) * share, rows)

    def _shard(self, tensor: Tensor) -> tuple[int, Tensor] | None:
        """See BaseEngine._shard. Copies of a shard divide it among themselves."""
        if not isinstance(tensor, DTensor) or tensor.placements[-1] != Shard(0):
            return None
        start, mine = self._span(tensor.shape)[0] * tensor[:1].numel(), tensor.to_local().detach().reshape(-1)
        copy, copies = self._copy()
        low, high = len(mine) * copy // copies, len(mine) * (copy + 1) // copies
        return start + low, mine[low:high]

    def _read(self, source: Source, name: str, like: Tensor | None) -> Tensor:
        """See BaseEngine._read."""
        shape = source.shape(name)
        if not isinstance(like, DTensor) or not shape:
            return source.whole(name)
        if shape != tuple(like.shape):
            return distribute_tensor(source.whole(name), self._mesh, [Replicate()] * self._mesh.ndim, src_data_rank=None)
        first, last = self._span(like.shape)
        width = math.prod(shape[1:])
        local = source.read(name, first * width, last * width).reshape(last - first, *shape[1:])
        return DTensor.from_local(
            local.to(like.to_local().device), self._mesh, like.placements, shape=like.shape, stride=like.stride()
        )

    def _settle(self) -> None:
        """See TorchEngine._settle: put the shards back in place.

        After an evaluation, which has no backward, the root's weights are still whole.
        """
        for unit in self._units():
            unit.reshard()


def shard_model(model: nn.Module, recipe: Recipe, config: Config, mesh: DeviceMesh) -> FSDPModule:
    """Shard the blocks, then what is left, in place. Raises UserError where a parameter is no DTensor afterwards."""
    dtype, half, reshard = DTYPES[config.precision], AUTOCAST.get(config.precision), config.backend.reshard
    offload = CPUOffloadPolicy() if config.backend.offload == "all" else OffloadPolicy()
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=half and dtype)
    if half:  # BatchNorm's float32 statistics want float32 weights beside them
        for norm in [m for m in model.modules() if isinstance(m, _BatchNorm)]:
            fully_shard(norm, mesh=mesh, reshard_after_forward=reshard, offload_policy=offload)
    for block in recipe.blocks(model):
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard, mp_policy=policy, offload_policy=offload)
    whole = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=half and dtype, output_dtype=half and dtype)
    # the backward begins where the forward ends: to free the root's weights in between would only gather them twice
    root: FSDPModule = fully_shard(model, mesh=mesh, reshard_after_forward=False, mp_policy=whole, offload_policy=offload)
    for name, parameter in model.named_parameters():
        if not (isinstance(parameter, DTensor) and parameter.device_mesh == mesh):
            raise UserError("backend.name", f"fsdp asked for, but parameter {name} is not sharded", "use backend.name: ddp")
    for unit in [m for m in model.modules() if isinstance(m, FSDPModule)]:
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)
    return root


def fsdp_mesh(device: str, ranks: int, copies: int) -> DeviceMesh:
    """Plain FSDP: all ranks in one row of shards. HSDP: a row for each copy, so that gathers stay within it."""
    if copies == 1:
        return init_device_mesh(device, (ranks,), mesh_dim_names=("shard",))
    return init_device_mesh(device, (copies, ranks // copies), mesh_dim_names=("replicate", "shard"))
