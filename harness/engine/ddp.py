"""Backend ddp: a whole copy per process; torch's DistributedDataParallel, set up by Accelerate, averages the gradients."""

import warnings
from contextlib import nullcontext
from typing import Any, final

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook, bf16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook

from harness.engine.base import Sums, told
from harness.engine.carried import CarriedEngine
from harness.engine.ledger import Number
from harness.parts.data import Micro
from harness.parts.recipe import Recipe
from harness.parts.stamps import Stamp, stamp
from harness.plan.config import BackendConfig, Config
from harness.plan.errors import UserError
from harness.plan.plan import Plan

POWERSGD_RANK = 4
MEASURED_EVERY = 4
"""In one of so many steps the ranks' own gradients are measured, which is a pass over them; in all where the run follows it."""


@final
class DdpEngine(CarriedEngine):
    """Data-parallel training with a whole model per process. One process alone is SoloEngine's."""

    def __init__(self, config: Config, plan: Plan, recipe: Recipe, *, cpu: bool) -> None:
        super().__init__(config, plan, recipe, cpu=cpu)
        self._fresh = True
        self._powersgd: PowerSGDState | None = None
        self._rounds = config.backend.compress != "none"
        self._added = not self._rounds and not config.backend.static_graph  # whose first pass meets too: only means may meet twice
        self._squares: list[Tensor] = []
        self._ready: Stamp = 0.0
        self._wrapped = self._wrap(cpu)
        self.meters.waits_known = True
        if config.watch.noise_scale and plan.passes == 1 and self._scaler is None:
            self.estimator = "ranks"
        self._every = 1 if plan.rule == "adascale" or config.batch.grow == "noise" else MEASURED_EVERY
        self._measuring = False
        self._hook(self._wrapped)

    def _wrap(self, cpu: bool) -> nn.parallel.DistributedDataParallel:
        """The unit under DDP; anything else that Accelerate may give is refused."""
        accelerator = Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=[ddp_options(self.config.backend)])
        with warnings.catch_warnings():
            # torch 2.13 renames broadcast_buffers; the older versions that we support know the old name only
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
            wrapped = accelerator.prepare_model(self._unit)
        if not isinstance(wrapped, nn.parallel.DistributedDataParallel):
            raise UserError("backend.name", f"ddp asked for, Accelerate gave {type(wrapped).__name__}", "check accelerate.yaml")
        return wrapped

    def _hook(self, wrapped: nn.parallel.DistributedDataParallel) -> None:
        """Let gradients travel as they are, as bf16, or as low-rank factors (PowerSGD, Vogels et al. 2019, 1905.13727).

        On their way out they are measured: this rank's own squared norm, and when the last of them was ready.
        """
        plain = add_up if self._added else allreduce_hook
        travel: Any = {"none": plain, "bf16": bf16_compress_hook, "powersgd": powerSGD_hook}[self.config.backend.compress]
        if self.config.backend.compress == "powersgd":
            self._powersgd = PowerSGDState(None, matrix_approximation_rank=POWERSGD_RANK, start_powerSGD_iter=2)

        def measured(state: Any, bucket: GradBucket) -> torch.futures.Future[Tensor]:
            if self._measuring:
                own = [g for p, g in zip(bucket.parameters(), bucket.gradients(), strict=True) if p is not self._unit.carrier]
                self._squares += [norm**2 for norm in torch._foreach_norm(own)]
            self._ready = stamp(self.device)
            met: torch.futures.Future[Tensor] = travel(state, bucket)
            return met

        wrapped.register_comm_hook(self._powersgd, measured)

    def _pass(self, micro: Micro, stop: float, last: bool) -> Sums:
        """See BaseEngine._pass."""
        # averages may be averaged again, so an early sync only costs time; a static graph must have one in its first pass
        sync = last or (self.config.backend.static_graph and self._fresh)
        self._fresh = False
        self._measuring = self.estimator == "ranks" and micro.chunk.start // self.plan.global_batch % self._every == 0
        quiet: Any = nullcontext() if sync else self._wrapped.no_sync()
        with quiet:
            objective, sums = self._wrapped(micro, stop, self._divide)
            (self._scaler.scale(objective) if self._scaler else objective).backward()
        if last:
            self.meters.waited(self._ready, stamp(self.device))
        return told(sums)

    def _meet(self, grads: list[Tensor], local: Sums) -> tuple[Sums, Tensor, Number]:
        """See TorchEngine._meet. `local` still has this rank's own count, of the gradient that was measured on its way out."""
        if self._squares:
            self._small = torch.stack(self._squares).sum() / local[1] ** 2
            self._squares = []
        return super()._meet(grads, local)

    def _move(self, bad: Tensor) -> None:
        """See TorchEngine._move. PowerSGD keeps what it rounded away for the next step: after a bad one that is NaN, so it goes."""
        super()._move(bad)
        if self._powersgd is not None and bad:
            for memory in (self._powersgd.error_dict, self._powersgd.p_memory_dict, self._powersgd.q_memory_dict):
                memory.clear()


def add_up(state: Any, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """A bucket's gradients, added up over ranks."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda met: met.value()[0])  # type: ignore[no-any-return]


def ddp_options(backend: BackendConfig) -> DistributedDataParallelKwargs:
    """What DDP is asked for. Buffers are not broadcast: BatchNorm's statistics are averaged before they are used."""
    return DistributedDataParallelKwargs(
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
        bucket_cap_mb=backend.bucket_mb or 25,
        static_graph=backend.static_graph,
    )
