"""Backend fsdp: weights, gradients and optimizer state lie in shards over the ranks (torch's FSDP2, `fully_shard`).

We call fully_shard ourselves: through Accelerate it is silently not FSDP on CPU ranks. Each block of the recipe is a unit: its
weights are gathered when it runs and freed after. Gradients are summed, not averaged: nothing has to be undone.

bf16: the gathered weights are bf16; the shards, the reductions and the accumulated gradients float32. Autocast over float32,
as ddp does it, would keep a cast copy of every weight for the backward, and so the whole model on every rank.
"""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override

from harness.config.errors import UserError
from harness.config.schema import Config
from harness.data.feed import Micro
from harness.engine.device_scalars import Number, on_device
from harness.engine.frozen import base_digests
from harness.engine.fsdp_layout import Shards, units
from harness.engine.gradients import Gradients
from harness.engine.initial_model import initial_model
from harness.engine.interface import AUTOCAST, DTYPES, Engine
from harness.engine.loss_sums import LossSums
from harness.engine.model_setup import ModelSetup, set_up
from harness.engine.moment_noise import moments_estimator
from harness.engine.passes import Sums, as_sums
from harness.engine.process import Process, join_alone, open_process
from harness.engine.torch_engine import torch_engine
from harness.engine.trained import leaves
from harness.modeling.dtypes import cast_model
from harness.modeling.memory_layout import check_row_major
from harness.modeling.optimizer import open_optimizer
from harness.modeling.prepare import prepare_model
from harness.plan.plan import Plan
from harness.recipes.base import Recipe
from harness.recipes.contract import Loss


def open_fsdp(config: Config, plan: Plan, recipe: Recipe, *, cpu: bool) -> Engine:
    """The engine of one rank. One process alone holds the only shard."""
    process = open_process(config, plan, cpu=cpu)
    join_alone(process.device)  # fully_shard needs a group, also of one
    mesh = fsdp_mesh(process.device.type, process.ranks, plan.nodes if config.backend.shard == "node" else 1)
    model = initial_model(recipe, config.run.seed, config.init_from, partial=config.init_partial)
    digests = base_digests(model, recipe)
    model = cast_model(model, process.dtype)  # on the host: fully_shard moves it unit by unit
    model = prepare_model(model, recipe, config.compute)
    root = shard_model(model, recipe, config, mesh)
    optimizer = open_optimizer(plan, recipe, model, fused=process.device.type == "cuda")
    layout = Shards(model, mesh)
    setup = set_up(process, plan, model, optimizer, digests, layout.local)
    return torch_engine(ReduceScatter(process, plan, setup, root, Loss(recipe, whole=False), layout.copies), layout)


@final
class ReduceScatter(Gradients):
    """Gradients that FSDP2 sums over ranks, each rank its shards. `copies` ranks hold the same shard."""

    def __init__(self, process: Process, plan: Plan, setup: ModelSetup, root: FSDPModule, loss: Loss, copies: int) -> None:
        super().__init__(process, plan, setup, moments_estimator(plan, process.config, setup.optimizer))
        self._root, self._copies, self._used = root, copies, set[str]()
        self._sums = LossSums(loss, process.config, torch.float64, process.device)

    @override
    def run(self, micro: Micro, stop: float, last: bool) -> Sums:
        config, setup = self.process.config, self.setup
        self._root.set_requires_gradient_sync(last)
        self._root.set_reshard_after_backward(last or config.backend.reshard)
        total, sums = self._sums.of(setup.model, micro, stop)
        if setup.unused.looking:
            self._look(total, last)
        total.backward()  # type: ignore[no-untyped-call]
        return as_sums(sums)

    def _look(self, total: Tensor, last: bool) -> None:
        """In the first step: which trained parameters its passes use. Gradients do not tell: missing ones are zeros."""
        reached, gathered, trained = leaves(total), self._gathered(), self.setup.trained
        self._used |= {name for name, p in trained if id(gathered.get(id(p))) in reached}
        if last and self._used:
            self.setup.unused.names = [name for name in trained.names if name not in self._used]

    def _gathered(self) -> dict[int, Tensor]:
        """What passes see of the parameters that have been gathered, by the parameter's id; nothing before torch 2.13."""
        found = units(self.setup.model)
        groups = [g for unit in found for g in vars(unit._get_fsdp_state()).get("_fsdp_param_groups", ())]
        pairs = [(p.sharded_param, vars(p).get("_unsharded_param")) for group in groups for p in group.fsdp_params]
        return {id(own): whole for own, whole in pairs if whole is not None}

    @override
    def check_trained(self) -> None:
        """As Trained.check; a recipe may see the shards or the gathered parameters."""
        super().check_trained()
        self.setup.trained.check(self._gathered())

    @override
    def grads(self) -> list[Tensor]:
        return shard_grads(self.params)

    @override
    def reduce(self, grads: list[Tensor], local: Sums) -> tuple[Sums, Tensor, Number]:
        return reduce_shards(self.process, grads, local, self._copies)


def shard_grads(params: Sequence[Tensor]) -> list[Tensor]:
    """This rank's shards of the gradients."""
    return [p.grad.to_local() for p in params if isinstance(p.grad, DTensor)]


def reduce_shards(process: Process, grads: list[Tensor], local: Sums, copies: int) -> tuple[Sums, Tensor, Number]:
    """See Gradients.reduce; `grads` are shards, of which `copies` ranks hold the same.

    One all-reduce brings the sums and the norm: its square is the sum of the shards' squares.
    """
    device = process.device
    square = nn.utils.get_total_norm(grads).to(device, torch.float64) ** 2 / copies
    reduced = process.reduce(torch.stack([*(on_device(part, device, torch.float64) for part in local), square]))
    loss, count, stop, whole = reduced.unbind()
    return (loss, count, stop), whole.sqrt(), 1 / count


def shard_model(model: nn.Module, recipe: Recipe, config: Config, mesh: DeviceMesh) -> FSDPModule:
    """Shard the blocks, then what is left, in place. Raises UserError if a parameter cannot be sharded or was not."""
    check_row_major(model, "fsdp")
    dtype, half, backend = DTYPES[config.precision], AUTOCAST.get(config.precision), config.backend
    offload = CPUOffloadPolicy() if backend.offload == "all" else OffloadPolicy()
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=half and dtype)
    if half:  # BatchNorm's float32 statistics need float32 weights
        for norm in [m for m in model.modules() if isinstance(m, _BatchNorm)]:
            fully_shard(norm, mesh=mesh, reshard_after_forward=backend.reshard, offload_policy=offload)
    for block in recipe.blocks(model):
        fully_shard(block, mesh=mesh, reshard_after_forward=backend.reshard, mp_policy=policy, offload_policy=offload)
    whole = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=half and dtype, output_dtype=half and dtype)
    # the backward begins where the forward ends: to free the root's weights in between would only gather them twice
    root: FSDPModule = fully_shard(model, mesh=mesh, reshard_after_forward=False, mp_policy=whole, offload_policy=offload)
    _check_sharded(model, mesh)
    sum_gradients(model)
    return root


def _check_sharded(model: nn.Module, mesh: DeviceMesh) -> None:
    """Raises UserError if a parameter was not sharded."""
    for name, parameter in model.named_parameters():
        if not (isinstance(parameter, DTensor) and parameter.device_mesh == mesh):
            raise UserError("backend.name", f"fsdp asked for, but parameter {name} is not sharded", "use backend.name: ddp")


def sum_gradients(model: nn.Module) -> None:
    """Have the gradients of a sharded model summed over ranks, and not averaged."""
    for unit in units(model):
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)
        if "set_reduce_scatter_unused_params" in dir(unit):  # from torch 2.13 on: zeros where this rank has no gradient
            unit.set_reduce_scatter_unused_params(True)


def fsdp_mesh(device: str, ranks: int, copies: int) -> DeviceMesh:
    """Plain FSDP: all ranks in one row of shards. HSDP: a row for each copy, so that gathers stay within it."""
    if copies == 1:
        return init_device_mesh(device, (ranks,), mesh_dim_names=("shard",))
    return init_device_mesh(device, (copies, ranks // copies), mesh_dim_names=("replicate", "shard"))
