"""What all engines share: the passes of a step, its row, what the ranks agree on, state out and in.

A backend says how one pass runs, and how a step ends: how the gradients of all ranks meet and move the weights.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from harness.engine.engine import COLUMNS, DTYPES, Engine, Estimator, Limit, autocast
from harness.engine.meters import Meters
from harness.engine.names import load_optimizer, name_optimizer
from harness.engine.pieces import Piece, Source, share, whole
from harness.parts.data import Micro
from harness.parts.recipe import Recipe, seed_torch
from harness.plan.config import Config
from harness.plan.errors import UserError
from harness.plan.order import derive
from harness.plan.plan import Plan
from harness.stats.rows import Reading
from harness.survive.pulse import Pulse

FOLLOWED = 65_536
"""Elements of a tensor that are followed through a step, to measure the update; all of them in a small one."""


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


class BaseEngine(Engine):
    """One process's part of a step. A subclass sets `optimizer`, and says how a pass runs and how the step ends."""

    optimizer: Optimizer

    def __init__(self, config: Config, plan: Plan, *, cpu: bool) -> None:
        state = PartialState(cpu=cpu)
        self.device, self.rank, self.processes = state.device, state.process_index, state.num_processes
        if self.processes != plan.processes:
            at = f"the plan is for {plan.processes} processes, here are {self.processes}"
            raise UserError("world", at, "start as many as the plan says, or plan for what is here")
        self.estimator = moments_estimator(plan, config)
        self.plan, self.config, self.dtype, self.seed = plan, config, DTYPES[config.precision], config.run.seed
        self._rows = torch.zeros(config.watch.every_steps, len(COLUMNS), dtype=torch.float64, device=self.device)
        self.pulse = Pulse()
        self._filled = 0
        self._scale = torch.ones((), dtype=torch.float64, device=self.device)
        self._small: Tensor | None = None
        self._norm = self._scale
        self._closing = False
        self._limit: Limit | None = None
        self._grad_norms: Tensor | None = None

    @abstractmethod
    def _pass(self, micro: Micro, stop: float, last: bool) -> Tensor:
        """Forward and backward of one micro-batch; gradients of all ranks meet in the last.

        Returns this rank's sums [loss, count, stop].
        """

    @abstractmethod
    def _finish(self, local: Tensor) -> Tensor:
        """Move the weights and write the step's row. `local` holds this rank's sums [loss, count, stop].

        Returns whether everything was finite, and so the weights moved: bool [], the same on every rank.
        """

    def _after_first(self, told: Tensor) -> None:
        """After the first pass of a step, `told` its sums: what the noise scale takes from it, where it does."""

    def adopt(self, plan: Plan) -> None:
        """See Engine.adopt."""
        self.plan = plan

    def step(self, micros: Sequence[Micro], lr: float, stop: bool, *, close: bool = False, limit: Limit | None = None) -> None:
        """See Engine.step."""
        self._limit = limit
        self.pulse.tick()
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        before = [buffer.clone() for buffer in self.model.buffers()]
        try:
            local = self._passes(micros, stop)
        except torch.OutOfMemoryError:
            self.optimizer.zero_grad(set_to_none=True)
            for buffer, kept in zip(self.model.buffers(), before, strict=True):
                buffer.copy_(kept)
            raise
        self._closing = close
        followed = self._followed() if close else []
        good = self._finish(local)
        for buffer, kept in zip(self.model.buffers(), before, strict=True):
            buffer.copy_(torch.where(good, buffer, kept))
        self._meter(micros, local, good, followed)

    def _passes(self, micros: Sequence[Micro], stop: bool) -> Tensor:
        """All forward and backward passes of a step: this rank's sums [loss, count, stop]."""
        told = []
        for number, micro in enumerate(micros):
            if number == 0 or micro.chunk.ghost != micros[number - 1].chunk.ghost:
                self.model.train(not micro.chunk.ghost)  # a ghost leaves BatchNorm's running statistics alone
            seed_torch(derive(self.seed, 2, micro.chunk.start))
            told.append(self._pass(micro, float(stop) / len(micros), number == len(micros) - 1))
            if number == 0:
                self._after_first(told[0])
        return torch.stack(told).sum(0)

    def _most(self) -> float | None:
        """To what the gradient's norm is clipped in this step: the plan's norm, or the step's own limit where that is lower."""
        limits = [x for x in (self.plan.clip, self._limit.norm if self._limit and not self._limit.skip else None) if x is not None]
        return min(limits, default=None)

    def _row(self, sums: Tensor, norm: Tensor, factor: Tensor, good: Tensor) -> None:
        """Write one step's row; nothing is read back."""
        self._norm = norm.to(sums)
        self._rows[self._filled] = torch.stack([*sums, self._norm, factor.to(sums), good.to(sums), self._scale.to(sums)])
        self._filled += 1

    def _meter(self, micros: Sequence[Micro], local: Tensor, good: Tensor, followed: list[Tensor]) -> None:
        """What a step leaves in the window's meters."""
        real = sum(m.chunk.count for m in micros if not m.chunk.ghost)
        if self._small is not None and real == self.plan.global_batch // self.processes:
            self.meters.add_noise(self._small, self._norm**2, good)
        self._small = None
        if followed:
            self.meters.norms = self._norms(followed)
        self.meters.computed += sum(m.chunk.count for m in micros)
        self.meters.step_done(local.double())

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
        homes = {id(p): number for number, group in enumerate(self.optimizer.param_groups) for p in group["params"]}
        return [(name, homes[id(p)], local_part(p)) for name, p in self.model.named_parameters() if p.requires_grad]

    def _copies(self) -> int:
        """How many ranks hold the same part of a weight."""
        return self.processes

    def _followed(self) -> list[Tensor]:
        """Copies of the first FOLLOWED elements of what lies here of each parameter, to see how far a step moves them."""
        return [held.detach().flatten()[:FOLLOWED].clone() for _, _, held in self._held()]

    def _norms(self, followed: list[Tensor]) -> Tensor:
        """Squared norms by label, as NormRow has them: float64 [labels, 4], of what lies on this rank."""
        held = [(name, group, t.detach()) for name, group, t in self._held()]
        weights, moved = [t for _, _, t in held], [t.flatten()[:FOLLOWED] for _, _, t in held]
        columns = [weights, followed, list(torch._foreach_sub(moved, followed))]
        squares = [torch.stack(torch._foreach_norm(c)).to(self.device, torch.float64) ** 2 for c in columns]
        grads = torch.full_like(squares[0], float("nan")) if self._grad_norms is None else self._grad_norms.double() ** 2
        names = {label: number for number, label in enumerate(self.meters.labels)}
        labels = [names[layer_label(name)] if self.config.watch.layers else group for name, group, _ in held]
        out = torch.zeros(len(names), 4, dtype=torch.float64, device=self.device)
        return out.index_add_(0, torch.tensor(labels, device=self.device), torch.stack([*squares, grads.to(self.device)], 1))

    def _moment(self) -> Tensor:
        """Squared norm of what lies here of the optimizer's first moment, where the noise scale is made of it."""
        found = [state.get(k) for state in self.optimizer.state.values() for k in ("exp_avg", "momentum_buffer")]
        moments = [local_part(m) for m in found if m is not None] if self.estimator == "moments" else []
        return nn.utils.get_total_norm(moments).to(self.device) ** 2 if moments else torch.zeros((), device=self.device)

    def lr_scales(self) -> list[float]:
        """See Engine.lr_scales."""
        return [float(group.get("lr_scale", 1.0)) for group in self.optimizer.param_groups]

    def read(self, data_wait_s: float = 0.0, troubles: int = 0, *, save_due: bool = False, save_failed: bool = False) -> Reading:
        """See Engine.read."""
        filled, self._filled = self._filled, 0
        flags = (float(save_due), float(save_failed))
        return self.meters.read(self._rows[:filled], COLUMNS, data_wait_s, troubles, self._moment(), self._copies(), flags)

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


def layer_label(name: str) -> str:
    """A parameter's name as part of a metric's: letters, digits and _ alone, or W&B cannot filter by it."""
    return "layer_" + "".join(c if c.isalnum() else "_" for c in name)


def local_part(tensor: Tensor) -> Tensor:
    """What of a tensor lies on this rank."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def moments_estimator(plan: Plan, config: Config) -> Estimator:
    """Whether the optimizer's first moment is an average of gradients, to take the noise scale from."""
    averages = plan.optimizer in ("adam", "adamw") or (plan.optimizer in ("sgd", "nesterov") and plan.momentum)
    return "moments" if averages and config.watch.noise_scale else "none"


def persistent(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that belong to a model's state, by name."""
    kept = model.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in model.named_buffers() if name in kept}


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; what is tied counts once, under its first name."""
    return dict(model.named_parameters()) | persistent(model)


def check_fit(mine: Mapping[str, tuple[int, ...]], source: Source) -> None:
    """Raises UserError where the names and shapes of a checkpoint's weights are not those of this model."""
    theirs = {name.removeprefix("model/"): source.shape(name) for name in source if name.startswith("model/")}
    for name in sorted({*mine, *theirs}):
        here, there = mine.get(name), theirs.get(name)
        if here != there:
            at = f"the checkpoint's weights do not fit this model: {name} is {there or 'missing'} there, {here or 'missing'} here"
            raise UserError("recipe", at, "use the recipe and knobs it was trained with, or another run.dir")
