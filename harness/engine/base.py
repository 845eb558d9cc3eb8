"""What all engines share: the passes of a step, its row, what the ranks agree on, state out and in.

A backend says how one pass runs, and how a step ends: how the gradients of all ranks meet and move the weights.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor, nn
from torch.optim import Optimizer

from harness.engine.engine import DTYPES, Engine, Estimator, Limit, autocast
from harness.engine.ledger import Number
from harness.engine.meters import Meters
from harness.engine.moved import Moved, View
from harness.engine.names import check_fit, layer_label, load_optimizer, name_optimizer, weights
from harness.engine.pieces import Piece, Source, share, whole
from harness.parts.data import Micro
from harness.parts.recipe import Recipe, seed_torch
from harness.plan.config import Config
from harness.plan.errors import UserError
from harness.plan.order import derive
from harness.plan.plan import Plan
from harness.stats.rows import Reading
from harness.survive.pulse import Pulse

if TYPE_CHECKING:
    from harness.engine.average import Average

Sums = tuple[Number, Number, Number]
"""Summed loss, count of items and stop flags."""


def summed(
    recipe: Recipe, model: nn.Module, micro: Micro, stop: float, config: Config, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """One forward pass: (the summed loss, to differentiate; the sums [loss, count, stop] as `dtype`). A ghost counts nothing."""
    device = next(model.parameters()).device
    with autocast(config, device):
        total, count = recipe.loss(model, micro.batch)
    count = torch.as_tensor(count, device=device)
    sums = torch.stack([total.detach().to(dtype), count.to(dtype), torch.full((), stop, dtype=dtype, device=device)])
    if micro.chunk.ghost:
        return total * 0, sums * torch.tensor([0, 0, 1], dtype=dtype, device=device)
    return total, sums


def told(sums: Tensor) -> Sums:
    """The sums of a tensor [loss, count, stop]."""
    loss, count, stop = sums.unbind()
    return loss, count, stop


class BaseEngine(Engine):
    """One process's part of a step. A subclass sets `optimizer`, and says how a pass runs and how the step ends."""

    optimizer: Optimizer
    average: "Average | None" = None  # of the weights, where the plan has one and the backend can keep it

    def __init__(self, config: Config, plan: Plan, *, cpu: bool) -> None:
        state = PartialState(cpu=cpu)
        self.device, self.rank, self.processes = state.device, state.process_index, state.num_processes
        if self.processes != plan.processes:
            at = f"the plan is for {plan.processes} processes, here are {self.processes}"
            raise UserError("world", at, "start as many as the plan says, or plan for what is here")
        self.estimator = moments_estimator(plan, config)
        self.plan, self.config, self.dtype, self.seed = plan, config, DTYPES[config.precision], config.run.seed
        self._pass_seed = derive(self.seed, 2)
        self.pulse = Pulse()
        self._scale: Number = 1.0
        self._small: Number | None = None
        self._norm: Number = 0.0
        self._closing = False
        self._untouched = True
        self._limit: Limit | None = None
        self._grad_norms: Tensor | None = None

    @abstractmethod
    def _pass(self, micro: Micro, stop: float, last: bool) -> Sums:
        """Forward and backward of one micro-batch; gradients of all ranks meet in the last. Returns this rank's sums."""

    @abstractmethod
    def _finish(self, local: Sums) -> Tensor:
        """Move the weights and write the step's row. `local` holds this rank's sums.

        Returns 1 if something was not finite, and so no weight moved, else 0: float32 [], the same on every rank.
        """

    def _after_first(self, told: Sums) -> None:
        """After the first pass of a step, `told` its sums: what the noise scale takes from it, where it does."""

    def parameters(self) -> int:
        """See Engine.parameters."""
        return sum(p.numel() for p in self.model.parameters())

    def adopt(self, plan: Plan) -> None:
        """See Engine.adopt."""
        self.plan = plan

    def step(self, micros: Sequence[Micro], lr: float, stop: bool, *, close: bool = False, limit: Limit | None = None) -> None:
        """See Engine.step."""
        self._limit = limit
        self.pulse.tick()
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        kept = [buffer.clone() for buffer in self._buffers]
        try:
            local, real, ghosts = self._passes(micros, float(stop) / len(micros))
        except torch.OutOfMemoryError:
            self.optimizer.zero_grad(set_to_none=True)
            for buffer, was in zip(self._buffers, kept, strict=True):
                buffer.copy_(was)
            raise
        self._closing = close
        views = self._views() if close else []
        moved = Moved(views) if views else None
        bad = self._finish(local)
        for buffer, was in zip(self._buffers, kept, strict=True):
            torch.where(bad == 0, buffer, was, out=buffer)
        if self.average is not None and self.plan.ema is not None:
            self.average.take(self.plan.ema, bad == 0)
        meters = self.meters
        if self._small is not None and real == self.plan.global_batch // self.processes:
            meters.add_noise(self._small, self._norm, bad)
        self._small = None
        if moved is not None:
            moments = self._moments()
            meters.add_norms(self._labels, moved.norms(moments), len(moments), self._grad_norms)
        meters.computed += real + ghosts
        meters.step_done(local)

    def _passes(self, micros: Sequence[Micro], stop: float) -> tuple[Sums, int, int]:
        """All passes of a step: (this rank's sums, its samples, the samples of its ghosts)."""
        last, real, ghosts = micros[-1], 0, 0
        local: Sums | None = None
        for micro in micros:
            chunk = micro.chunk
            if self._untouched or self.model.training == chunk.ghost:
                self._untouched = False
                self.model.train(not chunk.ghost)  # a ghost leaves BatchNorm's running statistics alone
            self._seed_pass(derive(self._pass_seed, chunk.start))
            told = self._pass(micro, stop, micro is last)
            if local is None:
                self._after_first(told)
                local = told
            else:
                local = (local[0] + told[0], local[1] + told[1], local[2] + told[2])
            real, ghosts = real + chunk.count * (not chunk.ghost), ghosts + chunk.count * chunk.ghost
        assert local is not None  # noqa: S101  a step has at least one pass
        return local, real, ghosts

    def _most(self) -> float | None:
        """To what the gradient's norm is clipped in this step: the plan's norm, or the step's own limit where that is lower."""
        if self._limit is None or self._limit.skip:
            return self.plan.clip
        return self._limit.norm if self.plan.clip is None else min(self.plan.clip, self._limit.norm)

    def _row(self, sums: Sums, norm: Tensor, factor: Number, bad: Tensor) -> None:
        """Write one step's row; nothing is read back."""
        self._norm = norm
        self.meters.rows.add((*sums, norm, factor, bad, self._scale))

    @cached_property
    def _buffers(self) -> list[Tensor]:
        """The model's buffers, which a step that is not finite must not move either."""
        return list(self.model.buffers())

    @cached_property
    def _seed_pass(self) -> Callable[[int], Any]:
        """Seeds what dropout draws from."""
        return seed_torch if self.device.type == "cuda" else torch.default_generator.manual_seed

    @cached_property
    def meters(self) -> Meters:
        """The window's meters; norms are by parameter group, or by parameter where the run file asks."""
        if self.config.watch.layers:
            labels = [layer_label(name) for name, p in self.model.named_parameters() if p.requires_grad]
        else:
            labels = [f"group{number}" for number in range(len(self.optimizer.param_groups))]
        return Meters(self.device, self.rank, self.processes, labels)

    def _held(self) -> list[tuple[str, int, Tensor]]:
        """(name, number of its parameter group, what lies here) of every parameter that is trained."""
        return [(name, home, self._local(p)) for name, home, p in self._trained]

    @cached_property
    def _trained(self) -> list[tuple[str, int, nn.Parameter]]:
        """(name, number of its parameter group, itself) of every parameter that is trained."""
        homes = {id(p): number for number, group in enumerate(self.optimizer.param_groups) for p in group["params"]}
        return [(name, homes[id(p)], p) for name, p in self.model.named_parameters() if p.requires_grad]

    def _local(self, tensor: Tensor) -> Tensor:
        """What of a tensor lies on this rank."""
        return tensor

    def _copies(self) -> int:
        """How many ranks hold the same part of a weight."""
        return self.processes

    def _views(self) -> list[View]:
        """What lies here of each parameter that is trained."""
        return [View.of(held) for _, _, held in self._held()]

    @cached_property
    def _labels(self) -> Tensor:
        """Which of the meters' labels each trained parameter belongs to."""
        names = {label: number for number, label in enumerate(self.meters.labels)}
        labels = [names[layer_label(name)] if self.config.watch.layers else group for name, group, _ in self._held()]
        return torch.tensor(labels, device=self.device)

    def _moments(self) -> list[Tensor]:
        """What lies here of the optimizer's first moments, where the noise scale is made of them."""
        if self.estimator != "moments":
            return []
        found = [state.get(k) for state in self.optimizer.state.values() for k in ("exp_avg", "momentum_buffer")]
        return [self._local(m) for m in found if m is not None]

    def begin(self) -> None:
        """See Engine.begin."""
        self.meters.begin()

    def lr_scales(self) -> list[float]:
        """See Engine.lr_scales."""
        return [float(group.get("lr_scale", 1.0)) for group in self.optimizer.param_groups]

    def read(self, data_wait_s: float = 0.0, troubles: int = 0, *, save_due: bool = False, save_failed: bool = False) -> Reading:
        """See Engine.read."""
        flags = (float(save_due), float(save_failed))
        return self.meters.read(data_wait_s, troubles, self._copies(), flags)

    def sync_buffers(self) -> None:
        """See Engine.sync_buffers."""
        if self.processes > 1:
            for buffer in self.model.buffers():
                if buffer.is_floating_point():
                    dist.all_reduce(buffer)
                    buffer /= self.processes

    def reduce(self, sums: Tensor) -> Tensor:
        """See Engine.reduce."""
        if self.processes > 1:
            dist.all_reduce(sums)
        return sums

    def any_rank(self, flag: bool) -> bool:
        """See Engine.any_rank."""
        return bool(self.reduce(torch.tensor(float(flag), device=self.device)) > 0)

    def _tensors(self) -> dict[str, Tensor]:
        """The state by name, as it lies here."""
        tensors = {f"model/{name}": value for name, value in weights(self.model).items()}
        return tensors | {f"optimizer/{name}": value for name, value in name_optimizer(self.model, self.optimizer).items()}

    def _shard(self, tensor: Tensor) -> tuple[int, Tensor] | None:
        """(first element, elements) that this rank alone holds of a tensor, or None where every rank holds it whole."""
        return None

    def _read(self, source: Source, name: str, like: Tensor | None) -> Tensor:
        """A tensor of a checkpoint, laid out as the parameter `like` is."""
        return source.whole(name)

    def pieces(self) -> list[Piece]:
        """See Engine.pieces."""
        own, common = [], []
        for name, tensor in self._tensors().items():
            shard = self._shard(tensor)
            if shard is None:
                common.append(whole(name, tensor))
            elif len(shard[1]):
                own.append(Piece(name, tuple(tensor.shape), *shard))
        return own + share(common, self.rank, self.processes)

    def load(self, source: Source) -> None:
        """See Engine.load."""
        mine, parameters = weights(self.model), dict(self.model.named_parameters())
        check_fit({name: tuple(tensor.shape) for name, tensor in mine.items()}, source)
        with torch.no_grad():
            for name, tensor in mine.items():
                tensor.copy_(self._read(source, f"model/{name}", tensor))
        moments = {name.removeprefix("optimizer/"): name for name in source if name.startswith("optimizer/")}
        state = {short: self._read(source, name, parameters.get(short.rpartition("/")[0])) for short, name in moments.items()}
        load_optimizer(self.model, self.optimizer, state)


def power_of_two(count: float) -> float:
    """The power of two at or below a count of items. To divide a sum by it rounds nothing, and keeps fp16 in its range."""
    return 2.0 ** math.floor(math.log2(count)) if count >= 1 else 1.0


def moments_estimator(plan: Plan, config: Config) -> Estimator:
    """Whether the optimizer's first moment is an average of gradients, to take the noise scale from."""
    averages = plan.optimizer in ("adam", "adamw") or (plan.optimizer in ("sgd", "nesterov") and plan.momentum)
    return "moments" if averages and config.watch.noise_scale else "none"
