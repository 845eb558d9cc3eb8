"""The model's buffers: restored after a step that is not finite, and made equal on all ranks before they are used or saved.

A module may assign a new tensor to a buffer in its forward: a buffer is known by its place, (module, name), not by its tensor.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from harness.config.errors import UserError
from harness.distributed.process_group import gather, peers
from harness.modeling.tensor_digest import digest


@dataclass(frozen=True, slots=True)
class Place:
    """Where a buffer is stored: `home[key]`, called `name` in the model. `norm`: it is kept by one of torch's norm layers."""

    home: dict[str, Tensor | None]
    key: str
    name: str
    norm: bool


def places(model: nn.Module) -> list[Place]:
    """The places of all buffers, also of those that are None so far."""
    return [
        Place(module._buffers, key, f"{prefix}.{key}" if prefix else key, isinstance(module, _NormBase))
        for prefix, module in model.named_modules()
        for key in module._buffers
    ]


_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


def _signed(tensor: Tensor) -> Tensor:
    """The same memory, where it holds unsigned integers as signed ones: not every version of torch.where knows the former."""
    return tensor.view(_SIGNED[tensor.dtype]) if tensor.dtype in _SIGNED else tensor


Kept = list[tuple[Place, Tensor | None, Tensor | None]]
"""(place, the tensor that was there, a copy of it) of each buffer."""


@final
class Buffers:
    """Restores the model's buffers after a step that is left out, and makes them equal on all ranks."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._model, self._device = model, device
        self._told: set[str] = set()
        self.find()

    def find(self) -> None:
        """Add buffers that were registered since the last call."""
        self._places = places(self._model)

    def keep(self) -> Kept:
        """Copies of all buffers, as they are before a step."""
        now = [place.home.get(place.key) for place in self._places]
        return [(place, b, None if b is None else b.detach().clone()) for place, b in zip(self._places, now, strict=True)]

    @staticmethod
    def put_back(kept: Kept) -> None:
        """Undo whatever a step has done to the buffers."""
        for place, was, copy in kept:
            if was is not None and copy is not None:
                with torch.no_grad():
                    was.copy_(copy)
            place.home[place.key] = was

    @staticmethod
    def settle(kept: Kept, bad: Tensor) -> bool:
        """Restore the buffers where `bad` ([], on the device) is not 0, without a host-device synchronisation.

        One is needed only where a buffer has changed its shape or type; returns whether that was so.
        """
        if not kept:
            return False
        good = bad == 0
        odd: list[tuple[Place, Tensor | None]] = []
        for place, was, copy in kept:
            now = place.home.get(place.key)
            if now is was:
                if now is not None and copy is not None:
                    bits = _signed(now)
                    torch.where(good, bits, _signed(copy), out=bits)
            elif now is not None and copy is not None and now.shape == copy.shape and now.dtype == copy.dtype:
                place.home[place.key] = torch.where(good, _signed(now.detach()), _signed(copy)).view(now.dtype)
            else:
                odd.append((place, copy))
        if odd and not good:
            for place, copy in odd:
                place.home[place.key] = copy
        return bool(odd)

    def check(self) -> None:
        """After the first steps, on all ranks together: raises UserError where ranks have other whole numbers or flags in a buffer.

        Nobody can say what they should be: neither a mean nor a sum.
        """
        self.find()
        if peers()[1] == 1:
            return
        for place, tensors in self._different():
            whole = not (tensors.is_floating_point() or tensors.is_complex())
            if whole and not place.norm:
                at = f"buffer {place.name} ({tensors.dtype}) differs between ranks after the first step"
                remedy = "keep it equal (all-reduce what it counts), use a float buffer, which is averaged, or a plain attribute"
                raise UserError("recipe.use", at, remedy)

    def sync(self) -> list[str]:
        """Make buffers that differ between ranks equal; all ranks call it. Returns the notes, once for each buffer.

        What is equal already stays as it is: constants are never averaged.
        """
        self.find()
        different, told = self._different(), []
        means = {place.name: t for place, t in different if t.is_floating_point() or t.is_complex()}
        average(means, self._device)
        for place, tensor in different:
            if place.name not in means:
                _first(tensor, self._device, count=place.norm)
            if not place.norm and place.name not in self._told:
                self._told.add(place.name)
                how = "averaged over ranks" if place.name in means else "taken from rank 0"
                told.append(f"buffer {place.name} differs between ranks: it is {how} before each evaluation and checkpoint")
        return told

    def _different(self) -> list[tuple[Place, Tensor]]:
        """(place, this rank's tensor) of the buffers whose type and shape are equal on all ranks, but whose numbers differ."""
        here = {p.name: (p, b) for p in self._places if (b := p.home.get(p.key)) is not None}
        found = gather({name: (str(b.dtype), tuple(b.shape), digest(b)) for name, (_, b) in here.items()})
        out = []
        for name, one in found[0].items():
            others = [rank.get(name) for rank in found[1:]]
            alike = all(o is not None and o[:2] == one[:2] for o in others)  # each rank may have a cache of its own length
            if alike and any(o != one for o in others):
                out.append(here[name])
        return out


def average(tensors: Mapping[str, Tensor], device: torch.device) -> None:
    """Make floating or complex tensors, the same names on all ranks, their mean over ranks, in float64 on `device`."""
    if not tensors:
        return
    parts = [_flat(t).to(device) for t in tensors.values()]
    whole = torch.cat(parts)
    dist.all_reduce(whole)
    whole /= dist.get_world_size()
    with torch.no_grad():
        for tensor, mean in zip(tensors.values(), torch.split(whole, [len(p) for p in parts]), strict=True):
            if tensor.is_complex():
                tensor.copy_(torch.view_as_complex(mean.view(*tensor.shape, 2)))
            else:
                tensor.copy_(mean.view(tensor.shape))


def _flat(tensor: Tensor) -> Tensor:
    """All numbers as float64 [n]."""
    tensor = tensor.detach()
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).reshape(-1).double()


def _first(tensor: Tensor, device: torch.device, *, count: bool) -> None:
    """Make whole numbers or flags rank 0's; `count`: the largest of all ranks', as passes that only fill up count none."""
    held = tensor.detach().to(device, torch.int64, copy=True).contiguous()
    if count:
        dist.all_reduce(held, dist.ReduceOp.MAX)
    else:
        dist.broadcast(held, src=0)
    tensor.copy_(held)
