"""What of weights and optimizer state DeepSpeed keeps on this rank, as pieces of whole tensors.

zero1 and zero2 lay the float32 weights of a parameter group one after another and give each rank an equal slice; zero3 cuts every
parameter into equal slices. Optimizer state lies as its weights do, except for counters, which are one for a slice.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from harness.checkpoint.tensor_slices import SliceReader, TensorSlice, share, whole
from harness.config.errors import UserError
from harness.engine.deepspeed import loss_scale
from harness.engine.extra_state import extra_pieces, load_extra_state
from harness.engine.loss_scale import SCALE
from harness.engine.model_setup import ModelSetup
from harness.engine.nvme_swap import in_memory, swaps
from harness.engine.optimizer_state import GROUP, SELF, tagged, untagged
from harness.engine.param_names import check_fit, check_kinds, persistent, whole_shape
from harness.engine.process import Process
from harness.engine.state import State
from harness.engine.trained import listed


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
class ZeroState(State):
    """The slices of one rank. `zero` is DeepSpeed's optimizer, which wraps torch's as `zero.optimizer`."""

    copies = 1

    def __init__(self, process: Process, setup: ModelSetup, zero: Any) -> None:
        self._model, self._trained, self._frozen, self._own = setup.model, setup.trained, setup.frozen, setup.own
        self._zero, self._rank, self._ranks = zero, process.rank, process.ranks
        self._precision = process.config.precision
        self.local = lambda tensor: tensor
        self._stage3 = any("ds_tensor" in vars(p) for p in setup.model.parameters())

    @override
    def settle(self) -> None:
        """Nothing to do: DeepSpeed frees gathered weights after every forward."""

    @override
    def pieces(self) -> list[TensorSlice]:
        scale = [whole(SCALE, torch.tensor(loss_scale(self._zero, self._precision)))] if self._precision == "fp16" else []
        return self._weights() + share(scale, self._rank, self._ranks) + extra_pieces(self._model, self._rank)

    def _weights(self) -> list[TensorSlice]:
        """Weights and optimizer state. Counters are written by the rank that has a parameter's first element."""
        out: list[TensorSlice] = []
        for slices, fetched in self._homes():
            pieces = [piece for s in slices for piece in self._of(s)]
            out += [replace(piece, data=piece.data.clone()) for piece in pieces] if fetched else pieces
        moved = self._frozen.moved()
        if moved and self._stage3:
            at = f"is zero3, and the recipe changed the frozen {listed(moved)}, whose shards no checkpoint holds"
            raise UserError("backend.name", at, "use backend.name: ddp, fsdp or zero2")
        common = [whole(f"model/{name}", held) for name, held in [*persistent(self._model).items(), *moved.items()]]
        return out + share(common, self._rank, self._ranks)

    def _of(self, s: Slice) -> Iterator[TensorSlice]:
        """A slice's weights and state."""
        yield TensorSlice(f"model/{s.name}", s.shape, s.start, s.of(s.flat))
        for key, value in self._state(s).items():
            if isinstance(value, Tensor) and value.shape == s.flat.shape:
                yield TensorSlice(f"optimizer/{s.name}/{key}", s.shape, s.start, s.of(value))
            elif s.start == 0 and (entry := tagged(key, value)) is not None:
                yield whole(f"optimizer/{s.name}/{entry[0]}", entry[1])

    def _homes(self, *, write: bool = False) -> Iterator[tuple[list[Slice], bool]]:
        """(the slices of one float32 tensor, which is in memory until the next is asked for; whether it was fetched from disk)."""
        homes: dict[int, list[Slice]] = {}
        for s in self._slices():
            homes.setdefault(s.home, []).append(s)
        for home, slices in homes.items():
            with in_memory(self._zero, home, write=write) as fetched:
                yield slices, fetched

    @override
    def load(self, source: SliceReader) -> list[str]:
        self.load_weights(source)
        lacking = load_extra_state(self._model, source)
        if self._precision == "fp16" and SCALE in source:
            self._zero.loss_scaler.cur_scale = float(source.whole(SCALE))
        return lacking

    def load_weights(self, source: SliceReader) -> None:
        """Weights and optimizer state alone."""
        keys = _optimizer_keys(source)
        with torch.no_grad():
            self._load_whole(source)
            self._own.reset()
            for s in (s for slices, _ in self._homes(write=True) for s in slices):
                s.of(s.flat).copy_(source.read(f"model/{s.name}", s.start, s.start + s.count))
                for key in keys.get(s.name, []):
                    self._take(s, key, source)
            self._spread()

    def _load_whole(self, source: SliceReader) -> None:
        """What every rank holds whole: buffers, and frozen weights where they are in it. Raises UserError if nothing fits."""
        shapes = {name: whole_shape(p) for name, p in self._trained}
        buffers = persistent(self._model)
        frozen = {} if self._stage3 else {name: tuple(p.shape) for name, p in self._frozen.weights.items()}
        check_fit(shapes | {name: tuple(b.shape) for name, b in buffers.items()}, frozen, source)
        check_kinds(dict(self._trained) | buffers, source)
        for name, buffer in buffers.items():
            buffer.copy_(source.whole(f"model/{name}"))
        for name in [name for name in frozen if f"model/{name}" in source]:
            self._frozen.weights[name].copy_(source.whole(f"model/{name}"))
            self._frozen.loaded(name)

    @override
    def held(self) -> list[tuple[str, int, Tensor]]:
        """The float32 slices that have any elements; of what is on disk, nothing."""
        return [] if swaps(self._zero) else [(s.name, s.group, s.of(s.flat)) for s in self._slices()]

    @override
    def moved(self) -> list[tuple[int, Tensor]]:
        """The float32 tensors. DeepSpeed's zero3 leaves the groups empty between steps."""
        return list({s.home: (s.group, s.flat) for s in self._slices()}.values())

    def _take(self, s: Slice, key: str, source: SliceReader) -> None:
        """One entry of optimizer state of one parameter."""
        name = f"optimizer/{s.name}/{key}"
        if key.startswith((GROUP, SELF)):
            self._own.set(s.group, *untagged(key, source.whole(name)))
            return
        state = self._zero.optimizer.state[s.flat]
        if source.shape(name) == s.shape and s.shape:
            values = source.read(name, s.start, s.start + s.count)
            if key not in state:
                state[key] = torch.zeros_like(s.flat)
            s.of(state[key]).copy_(values)
        else:
            bare, value = untagged(key, source.whole(name))
            state[bare] = value

    def _state(self, s: Slice) -> dict[str, Any]:
        """Optimizer state of a slice's tensor, and the numbers that the optimizer counts per group."""
        optimizer = self._zero.optimizer
        own: dict[str, Any] = optimizer.state.get(s.flat, {})
        return own | self._own.changed(s.group)

    def _slices(self) -> Iterator[Slice]:
        """The slices of this rank, those without an element left out."""
        for name, p in self._trained:
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
        """Update the weights that passes use from the float32 slices, on all ranks."""
        if not self._stage3:
            self._zero.update_lp_params()
            return
        self._zero._partition_all_parameters()
        for number in range(len(self._zero.fp16_groups)):
            with in_memory(self._zero, number):
                self._zero._reassign_or_swap_out_partitioned_parameters(number)
        if self._zero.persistent_parameters:
            self._zero.persistent_parameters[0].all_gather(self._zero.persistent_parameters)


def _optimizer_keys(source: SliceReader) -> dict[str, list[str]]:
    """What a checkpoint holds of the optimizer's state, by parameter."""
    keys: dict[str, list[str]] = {}
    for full in source:
        kind, _, rest = full.partition("/")
        if kind == "optimizer":
            name, _, key = rest.rpartition("/")
            keys.setdefault(name, []).append(key)
    return keys
