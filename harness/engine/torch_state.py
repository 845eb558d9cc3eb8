"""The state of a model whose weights torch's optimizer moves: saved to a checkpoint and loaded from one."""

from collections.abc import Mapping
from functools import cached_property
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from harness.checkpoint.tensor_slices import SliceReader, TensorSlice, share, whole
from harness.engine.evaluation_weights import evaluated
from harness.engine.extra_state import extra_pieces, load_extra_state
from harness.engine.layout import Layout
from harness.engine.loss_scale import LossScale
from harness.engine.model_setup import ModelSetup
from harness.engine.optimizer_state import is_text, load_optimizer, name_optimizer
from harness.engine.param_names import check_fit, check_kinds, persistent
from harness.engine.process import Process
from harness.engine.state import State
from harness.engine.update_norms import View
from harness.modeling.own_optimizer import TwoModes


@final
class TorchState(State):
    """The state of a model whose weights torch's optimizer moves."""

    def __init__(self, process: Process, setup: ModelSetup, layout: Layout, fp16: LossScale | None) -> None:
        self._process, self._setup, self._layout, self._fp16 = process, setup, layout, fp16
        self.copies, self.local = layout.copies, layout.local
        groups = setup.optimizer.param_groups
        homes = {id(p): number for number, group in enumerate(groups) for p in group["params"]}
        self._trained = [(name, homes[id(p)], p) for name, p in setup.trained]

    @override
    def settle(self) -> None:
        self._layout.settle()

    @override
    def held(self) -> list[tuple[str, int, Tensor]]:
        return [(name, home, self.local(p)) for name, home, p in self._trained]

    @override
    def moved(self) -> list[tuple[int, Tensor]]:
        groups = self._setup.optimizer.param_groups
        return [(number, p) for number, group in enumerate(groups) for p in group["params"]]

    @override
    def views(self) -> list[View]:
        return self._fixed_views if self._layout.fixed else super().views()

    @cached_property
    def _fixed_views(self) -> list[View]:
        return super().views()

    @override
    def pieces(self) -> list[TensorSlice]:
        self._layout.settle()
        own, common = [], []
        for name, tensor in self._tensors().items():
            shard = self._layout.shard(tensor)
            if shard is None:
                common.append(whole(name, tensor))
            elif len(shard[1]):
                own.append(TensorSlice(name, tuple(tensor.shape), *shard))
        return own + share(common, self._process.rank, self._process.ranks) + extra_pieces(self._setup.model, self._process.rank)

    def _tensors(self) -> dict[str, Tensor]:
        """This rank's state by name."""
        setup = self._setup
        held: dict[str, Tensor] = {**dict(setup.trained), **persistent(setup.model), **setup.frozen.moved()}
        optimizer = name_optimizer(setup.model.named_parameters(), setup.optimizer, setup.own)
        return {
            **{f"model/{name}": value for name, value in held.items()},
            **{f"optimizer/{name}": value for name, value in optimizer.items()},
            **{f"ema/{name}": kept for name, kept in setup.average or ()},
            **self._to_evaluate(),
            **(self._fp16.state() if self._fp16 else {}),
        }

    def _to_evaluate(self) -> dict[str, Tensor]:
        """The weights for evaluation, if the optimizer has separate ones (schedule-free)."""
        if not isinstance(self._setup.optimizer, TwoModes):
            return {}
        with evaluated(self._setup, self):
            return {f"eval/{name}": p.detach().clone() for name, p in self._setup.trained}

    @override
    def load(self, source: SliceReader) -> list[str]:
        """Weights, optimizer and average, which begins at the loaded weights if it is missing; the missing extra state."""
        self._layout.settle()
        self._load_weights(source)
        self._load_optimizer(source)
        lacking = load_extra_state(self._setup.model, source)
        self._load_average(source)
        if self._fp16:
            self._fp16.load(source)
        return lacking

    def _load_weights(self, source: SliceReader) -> None:
        setup = self._setup
        mine: dict[str, Tensor] = {**dict(setup.trained), **persistent(setup.model)}
        frozen = setup.frozen.weights
        check_fit(_shapes(mine), _shapes(frozen), source)
        for name in [name for name in frozen if f"model/{name}" in source]:
            mine[name] = frozen[name]
            setup.frozen.loaded(name)
        check_kinds(mine, source)
        with torch.no_grad():
            for name, tensor in mine.items():
                tensor.copy_(self._layout.read(source, f"model/{name}", tensor))

    def _load_optimizer(self, source: SliceReader) -> None:
        setup, parameters = self._setup, dict(self._setup.model.named_parameters())
        moments = {name.removeprefix("optimizer/"): name for name in source if name.startswith("optimizer/")}
        likes = {short: None if is_text(short) else parameters.get(short.rpartition("/")[0]) for short in moments}
        state = {short: self._layout.read(source, name, likes[short]) for short, name in moments.items()}
        load_optimizer(setup.model, setup.optimizer, setup.own, state)

    def _load_average(self, source: SliceReader) -> None:
        average = self._setup.average
        if average is None:
            return
        average.begin()
        live = {**dict(self._setup.model.named_parameters()), **persistent(self._setup.model)}
        with torch.no_grad():
            for name, kept in average:
                if f"ema/{name}" in source:
                    kept.copy_(self._layout.read(source, f"ema/{name}", live[name]))


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
