"""How FSDP2 lays weights over the ranks: by rows, as torch.chunk cuts them. With HSDP each node has a copy of all shards."""

import math
from typing import final

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from typing_extensions import override

from harness.checkpoint.tensor_slices import SliceReader
from harness.engine.layout import Layout


def units(model: nn.Module) -> list[FSDPModule]:
    """The modules of a sharded model whose weights are gathered together."""
    return [m for m in model.modules() if isinstance(m, FSDPModule)]


@final
class Shards(Layout):
    """Each rank holds some rows of every weight; its parameters are DTensors."""

    fixed = False

    def __init__(self, model: nn.Module, mesh: DeviceMesh) -> None:
        self._model, self._mesh = model, mesh
        self._copy, self.copies = (mesh.get_local_rank(0), mesh.size(0)) if mesh.ndim == 2 else (0, 1)

    @override
    def local(self, tensor: Tensor) -> Tensor:
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor

    def _span(self, shape: torch.Size) -> tuple[int, int]:
        """[first, last) of this rank's rows of a sharded tensor."""
        rows, last = shape[0], self._mesh.ndim - 1
        share, place = -(-rows // self._mesh.size(last)), self._mesh.get_local_rank(last)
        return min(place * share, rows), min((place + 1) * share, rows)

    @override
    def shard(self, tensor: Tensor) -> tuple[int, Tensor] | None:
        """As Layout.shard; the ranks with copies of a shard divide it among themselves."""
        if not isinstance(tensor, DTensor) or tensor.placements[-1] != Shard(0):
            return None
        start, mine = self._span(tensor.shape)[0] * tensor[:1].numel(), tensor.to_local().detach().reshape(-1)
        low, high = len(mine) * self._copy // self.copies, len(mine) * (self._copy + 1) // self.copies
        return start + low, mine[low:high]

    @override
    def read(self, source: SliceReader, name: str, like: Tensor | None) -> Tensor:
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

    @override
    def settle(self) -> None:
        """After an evaluation, which has no backward, the root's weights are still whole."""
        for unit in units(self._model):
            unit.reshard()
