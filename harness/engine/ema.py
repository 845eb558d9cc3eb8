"""The running average of the weights (EMA): ema' = rho ema + (1 - rho) weights after each step, laid out as the weights are.

At k times the batch rho^k keeps its half-life in samples (Busbridge et al. 2023, 2307.13813); the plan has rho. It begins at the
initial weights. BatchNorm's running statistics are averaged along, as they belong to the weights.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import final

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from harness.distributed.process_group import gather
from harness.engine.buffers import average
from harness.modeling.tensor_digest import digest


@final
class Average:
    """Averages of a model's trained parameters and of the `buffers` named. Each keeps the shards that its tensor has on this rank.

    A buffer with infinite numbers is a mask and no statistic: it has no average.
    """

    def __init__(self, model: nn.Module, buffers: Iterable[str]) -> None:
        self._model, self._parameters = model, {name: p for name, p in model.named_parameters() if p.requires_grad}
        held = dict(model.named_buffers())
        self._buffers = [n for n in buffers if held[n].is_floating_point() and bool(torch.isfinite(held[n]).all())]
        self._kept = {name: t.detach().clone() for name, t in self._live().items()}

    def _live(self) -> dict[str, Tensor]:
        """The tensors that are averaged.

        Buffers are looked up each time: where a model is wrapped, others may take their places.
        """
        held = dict(self._model.named_buffers())
        return {**self._parameters, **{name: held[name] for name in self._buffers}}

    def take(self, rho: float, good: Tensor) -> None:
        """After a step: move towards the weights, unless `good` (bool [], on the device) is false. The host is not asked."""
        kept, live = _local(self._kept), _local(self._live())
        moved = torch._foreach_sub(live, kept)
        torch._foreach_mul_(moved, good.to(kept[0]) * (1 - rho))
        torch._foreach_add_(kept, moved)

    def swap(self) -> None:
        """Swap the averages with the weights; a second call swaps them back."""
        for kept, live in zip(_local(self._kept), _local(self._live()), strict=True):
            was = live.clone()
            live.copy_(kept)
            kept.copy_(was)

    def sync(self, device: torch.device) -> None:
        """Average over ranks what differs by rank and is not sharded: the averages of BatchNorm's statistics."""
        mine = {name: self._kept[name] for name in self._buffers}
        found = gather({name: digest(kept) for name, kept in mine.items()})
        average({name: kept for name, kept in mine.items() if any(rank[name] != found[0][name] for rank in found)}, device)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self._kept.items())

    def begin(self) -> None:
        """Set the averages to the current weights."""
        for kept, live in zip(_local(self._kept), _local(self._live()), strict=True):
            kept.copy_(live)


def _local(tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """This rank's part of each, detached, to read and write."""
    return [(t.to_local() if isinstance(t, DTensor) else t).detach() for t in tensors.values()]
