"""What all engines with a torch optimizer in this process share: one step, its row, its clipping, its skip.

A backend says how one pass runs, and how the gradients and the sums of all ranks meet; the rest is here, once.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor, nn
from torch.optim import Optimizer

from harness.engine.engine import COLUMNS, DTYPES, Engine, StepRow, autocast
from harness.engine.names import load_optimizer, name_optimizer
from harness.engine.pieces import Piece, Source, share, whole
from harness.parts.data import Micro
from harness.parts.recipe import Recipe, seed_torch
from harness.plan.config import Config
from harness.plan.errors import UserError
from harness.plan.order import derive
from harness.plan.plan import Plan


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


class TorchEngine(Engine):
    """An engine that holds the optimizer itself. A subclass sets `optimizer` and `_params`, and fills the four methods `_...`."""

    optimizer: Optimizer
    _params: list[nn.Parameter]

    def __init__(self, config: Config, plan: Plan, *, cpu: bool) -> None:
        state = PartialState(cpu=cpu)
        self.device, self.rank, self.processes = state.device, state.process_index, state.num_processes
        if self.processes != plan.processes:
            at = f"the plan is for {plan.processes} processes, here are {self.processes}"
            raise UserError("world", at, "start as many as the plan says, or plan for what is here")
        self.plan, self.dtype, self.seed = plan, DTYPES[config.precision], config.run.seed
        self._rows = torch.zeros(config.watch.every_steps, len(COLUMNS), dtype=torch.float64, device=self.device)
        self._filled = 0

    @abstractmethod
    def _pass(self, micro: Micro, stop: float, last: bool) -> Tensor:
        """Forward and backward of one micro-batch; gradients of all ranks meet in the last.

        Returns this rank's sums [loss, count, stop].
        """

    @abstractmethod
    def _grads(self) -> list[Tensor]:
        """The gradients as plain tensors, or as this rank's parts of them."""

    @abstractmethod
    def _meet(self, grads: list[Tensor], local: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(the sums [loss, count, stop] over all ranks, the gradient's global norm, the number of ranks it is divided by).

        `local` holds this rank's sums. The norm is of the gradient as it lies in `grads`; both are the same on every rank.
        """

    def step(self, micros: Sequence[Micro], lr: float, stop: bool) -> None:
        """See Engine.step."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        before = [buffer.clone() for buffer in self.model.buffers()]
        told = []
        for number, micro in enumerate(micros):
            if number == 0 or micro.chunk.ghost:
                self.model.train(not micro.chunk.ghost)  # a ghost leaves BatchNorm's running statistics alone
            seed_torch(derive(self.seed, 2, micro.chunk.start))
            told.append(self._pass(micro, float(stop) / len(micros), number == len(micros) - 1))
        grads = self._grads()
        sums, norm, divided = self._meet(grads, torch.stack(told).sum(0))
        good = self._update(grads, sums, norm, divided / sums[1])
        for buffer, kept in zip(self.model.buffers(), before, strict=True):
            buffer.copy_(torch.where(good, buffer, kept))
        self.optimizer.zero_grad(set_to_none=True)

    def _update(self, grads: list[Tensor], sums: Tensor, norm: Tensor, scale: Tensor) -> Tensor:
        """Normalise by the global count, clip, and move the weights if everything is finite. One row is written, none read.

        Returns whether everything was finite: bool [], the same on every rank.
        """
        norm = norm * scale
        factor = torch.ones_like(norm) if self.plan.clip is None else (self.plan.clip / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(grads, (scale * factor).to(self.dtype))
        good = torch.isfinite(norm) & torch.isfinite(sums[0])
        self._rows[self._filled] = torch.stack([*sums, norm, factor, good.to(sums.dtype)])
        self._filled += 1
        self._move(good)
        return good

    def _move(self, good: Tensor) -> None:
        """The optimizer's own step, unless `good` (bool, the same on every rank) is false."""
        if all(g.get("fused") for g in self.optimizer.param_groups):
            # torch's fused kernels leave weights and moments alone where found_inf is 1, without asking the host
            self.optimizer.found_inf = (~good).float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif good:  # on a GPU this waits for the device: optimizers that torch does not fuse have no other way to skip
            self.optimizer.step()

    def read(self) -> list[StepRow]:
        """See Engine.read."""
        rows = self._rows[: self._filled].tolist()
        self._filled = 0
        return [StepRow(*row) for row in rows]

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
        check_fit(mine, source)
        with torch.no_grad():
            for name, tensor in mine.items():
                tensor.copy_(self._read(source, f"model/{name}", tensor))
        moments = {name.removeprefix("optimizer/"): name for name in source if name.startswith("optimizer/")}
        state = {short: self._read(source, name, parameters.get(short.rpartition("/")[0])) for short, name in moments.items()}
        load_optimizer(self.model, self.optimizer, state)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; what is tied counts once, under its first name."""
    kept = model.state_dict(keep_vars=True)
    return dict(model.named_parameters()) | {name: buffer for name, buffer in model.named_buffers() if name in kept}


def check_fit(mine: Mapping[str, Tensor], source: Source) -> None:
    """Raises UserError where a checkpoint's weights are not those of this model."""
    theirs = {name.removeprefix("model/"): source.shape(name) for name in source if name.startswith("model/")}
    for name in sorted({*mine, *theirs}):
        here, there = tuple(mine[name].shape) if name in mine else None, theirs.get(name)
        if here != there:
            at = f"the checkpoint's weights do not fit this model: {name} is {there or 'missing'} there, {here or 'missing'} here"
            raise UserError("recipe", at, "use the recipe and knobs it was trained with, or another run.dir")
