"""What of weights and optimizer state DeepSpeed keeps on this rank, as pieces of whole tensors.

zero1 and zero2 lay the float32 weights of a parameter group one after another and give each rank an equal slice; zero3 cuts every
parameter into equal slices. Optimizer state lies as its weights do, except for counters, which are one for a slice.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any, final

import torch
from torch import Tensor, nn

from harness.engine.names import GROUP, check_fit, counted, persistent
from harness.engine.pieces import Piece, Source, share, whole
from harness.engine.swap import in_memory, swaps


@dataclass(frozen=True)
class Slice:
    """Elements [start, start + count) of a parameter lie at [offset, offset + count) of the float32 tensor `flat`.

    `group` is the number of the optimizer's parameter group, `home` that of `flat` among DeepSpeed's.
    """

    name: str
    group: int
    shape: tuple[int, ...]
    start: int
    count: int
    home: int
    flat: Tensor
    offset: int

    def of(self, like_flat: Tensor) -> Tensor:
        """This slice of a tensor that lies as `flat` does."""
        return like_flat.detach().narrow(0, self.offset, self.count)


@final
class Shards:
    """The slices of one rank. `zero` is DeepSpeed's optimizer, which wraps torch's as `zero.optimizer`."""

    def __init__(self, model: nn.Module, zero: Any, rank: int, ranks: int) -> None:
        self._model, self._zero, self._rank, self._ranks = model, zero, rank, ranks
        self._stage3 = any("ds_tensor" in vars(p) for p in model.parameters())

    def pieces(self) -> list[Piece]:
        """See Engine.pieces. Counters are written by the rank that has a parameter's first element."""
        out: list[Piece] = []
        for slices, fetched in self._homes():
            pieces = [piece for s in slices for piece in self._of(s)]
            out += [replace(piece, data=piece.data.clone()) for piece in pieces] if fetched else pieces
        buffers = [whole(f"model/{name}", buffer) for name, buffer in persistent(self._model).items()]
        return out + share(buffers, self._rank, self._ranks)

    def _of(self, s: Slice) -> Iterator[Piece]:
        """A slice's weights and state."""
        yield Piece(f"model/{s.name}", s.shape, s.start, s.of(s.flat))
        for key, value in self._state(s).items():
            if isinstance(value, Tensor) and value.shape == s.flat.shape:
                yield Piece(f"optimizer/{s.name}/{key}", s.shape, s.start, s.of(value))
            elif s.start == 0:
                number = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
                yield whole(f"optimizer/{s.name}/{key}", number)

    def _homes(self, *, write: bool = False) -> Iterator[tuple[list[Slice], bool]]:
        """(the slices of one float32 tensor, which is in memory until the next is asked for; whether it was fetched from disk)."""
        homes: dict[int, list[Slice]] = {}
        for s in self._slices():
            homes.setdefault(s.home, []).append(s)
        for home, slices in homes.items():
            with in_memory(self._zero, home, write=write) as fetched:
                yield slices, fetched

    def load(self, source: Source) -> None:
        """See Engine.load."""
        trained = dict(self._trained())
        shapes = {name: whole_shape(p) for name, p in trained.items()}
        buffers = persistent(self._model)
        check_fit(shapes | {name: tuple(b.shape) for name, b in buffers.items()}, source)
        keys: dict[str, list[str]] = {}
        for full in source:
            kind, _, rest = full.partition("/")
            if kind == "optimizer":
                keys.setdefault(rest.rpartition("/")[0], []).append(rest.rpartition("/")[2])
        with torch.no_grad():
            for name, buffer in buffers.items():
                buffer.copy_(source.whole(f"model/{name}"))
            for s in (s for slices, _ in self._homes(write=True) for s in slices):
                s.of(s.flat).copy_(source.read(f"model/{s.name}", s.start, s.start + s.count))
                for key in keys.get(s.name, []):
                    self._take(s, key, source)
            self._spread()

    def held(self) -> list[tuple[str, int, Tensor]]:
        """(name, number of its parameter group, float32 elements) of every slice that has any; of what is on disk, nothing."""
        return [] if swaps(self._zero) else [(s.name, s.group, s.of(s.flat)) for s in self._slices()]

    def _take(self, s: Slice, key: str, source: Source) -> None:
        """One entry of optimizer state of one parameter."""
        name = f"optimizer/{s.name}/{key}"
        if key.startswith(GROUP):
            self._zero.optimizer.param_groups[s.group][key.removeprefix(GROUP)] = int(source.whole(name))
            return
        state = self._zero.optimizer.state[s.flat]
        if source.shape(name) == s.shape and s.shape:
            values = source.read(name, s.start, s.start + s.count)
            if key not in state:
                state[key] = torch.zeros_like(s.flat)
            s.of(state[key]).copy_(values)
        else:
            value = source.whole(name)
            state[key] = float(value) if value.dtype == torch.float64 else value

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self._model.named_parameters() if p.requires_grad)

    def _state(self, s: Slice) -> dict[str, Any]:
        """Optimizer state of a slice's tensor, and the numbers that the optimizer counts per group."""
        optimizer = self._zero.optimizer
        own: dict[str, Any] = optimizer.state.get(s.flat, {})
        return own | counted(optimizer, optimizer.param_groups[s.group])

    def _slices(self) -> Iterator[Slice]:
        """The slices of this rank, those without an element left out."""
        for name, p in self._trained():
            shape = whole_shape(p)
            if self._stage3:
                part, offset, padded = self._zero.grad_position[self._zero.get_param_id(p)]
                group = self._zero.sub_group_to_group_id[part]
                start = self._rank * padded
                count = min(padded, prod(shape) - start)
                home, flat = part, self._zero.fp32_partitioned_groups_flat[part]
            else:
                where = p._hp_mapping  # type: ignore[attr-defined]
                if where is None:
                    continue
                start, count = where.lp_fragment_address.start, where.lp_fragment_address.numel
                group, offset = where.param_group_index, where.hp_fragment_address.start
                home, flat = group, self._flats()[group]
            if count > 0:
                yield Slice(name, group, shape, start, count, home, flat, offset)

    def _flats(self) -> list[Tensor]:
        """The float32 slice of each parameter group in zero1 and zero2; zero1 in bf16 has a class of its own for it."""
        owner = vars(self._zero)
        flats: list[Tensor] = owner.get("fp32_groups_flat_partition") or owner["single_partition_of_fp32_groups"]
        return flats

    def _spread(self) -> None:
        """Bring the weights that passes run with up to their float32 slices, on all ranks."""
        if not self._stage3:
            self._zero.update_lp_params()
            return
        self._zero._partition_all_parameters()
        for number in range(len(self._zero.fp16_groups)):
            with in_memory(self._zero, number):
                self._zero._reassign_or_swap_out_partitioned_parameters(number)
        if self._zero.persistent_parameters:
            self._zero.persistent_parameters[0].all_gather(self._zero.persistent_parameters)


def whole_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """The whole shape of a parameter; zero3 leaves an empty tensor in its place."""
    return tuple(vars(parameter).get("ds_shape", parameter.shape))
