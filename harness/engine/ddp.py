"""Backend ddp: a whole copy per process; torch's DistributedDataParallel, set up by Accelerate, averages the gradients."""

import warnings
from contextlib import nullcontext
from typing import Any, final

from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook

from harness.engine.copies import CopyEngine
from harness.parts.data import Micro
from harness.parts.recipe import Recipe
from harness.plan.config import BackendConfig, Config
from harness.plan.errors import UserError
from harness.plan.plan import Plan

POWERSGD_RANK = 4


@final
class DdpEngine(CopyEngine):
    """Data-parallel training with a whole model per process, or in one process alone."""

    def __init__(self, config: Config, plan: Plan, recipe: Recipe, *, cpu: bool) -> None:
        super().__init__(config, plan, recipe, cpu=cpu)
        self._wrapped: nn.Module = self._wrap(cpu) if self.processes > 1 else self._unit
        self._fresh = True
        self._powersgd: PowerSGDState | None = None
        self._rounds = config.backend.compress != "none"
        if self._rounds and isinstance(self._wrapped, nn.parallel.DistributedDataParallel):
            self._compress(self._wrapped)

    def _wrap(self, cpu: bool) -> nn.Module:
        """The unit under DDP; anything else that Accelerate may give is refused."""
        accelerator = Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=[ddp_options(self.config.backend)])
        with warnings.catch_warnings():
            # torch 2.13 renames broadcast_buffers; the older versions that we support know the old name only
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
            wrapped = accelerator.prepare_model(self._unit)
        if not isinstance(wrapped, nn.parallel.DistributedDataParallel):
            raise UserError("backend.name", f"ddp asked for, Accelerate gave {type(wrapped).__name__}", "check accelerate.yaml")
        return wrapped

    def _compress(self, wrapped: nn.parallel.DistributedDataParallel) -> None:
        """Let gradients travel as bf16, or as low-rank factors (PowerSGD, Vogels et al. 2019, 1905.13727)."""
        if self.config.backend.compress == "bf16":
            wrapped.register_comm_hook(
                None, lambda group, bucket: bf16_compress_hook(group, bucket)
            )  # by its name, gloo is refused
            return
        self._powersgd = PowerSGDState(None, matrix_approximation_rank=POWERSGD_RANK, start_powerSGD_iter=2)
        wrapped.register_comm_hook(self._powersgd, powerSGD_hook)

    def _pass(self, micro: Micro, stop: float, last: bool) -> Tensor:
        """See BaseEngine._pass."""
        # averages may be averaged again, so an early sync only costs time; a static graph must have one in its first pass
        sync = last or self.processes == 1 or (self.config.backend.static_graph and self._fresh)
        self._fresh = False
        quiet: Any = nullcontext() if sync else self._wrapped.no_sync()  # type: ignore[operator]
        with quiet:
            objective, sums = self._wrapped(micro, stop, self._divide)
            (self._scaler.scale(objective) if self._scaler else objective).backward()
        told: Tensor = sums
        return told

    def _move(self, good: Tensor) -> None:
        """See TorchEngine._move. PowerSGD keeps what it rounded away for the next step: after a bad one that is NaN, so it goes."""
        super()._move(good)
        if self._powersgd is not None and not good:
            for memory in (self._powersgd.error_dict, self._powersgd.p_memory_dict, self._powersgd.q_memory_dict):
                memory.clear()


def ddp_options(backend: BackendConfig) -> DistributedDataParallelKwargs:
    """What DDP is asked for. Buffers are not broadcast: BatchNorm's statistics are averaged before they are used."""
    return DistributedDataParallelKwargs(
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
        bucket_cap_mb=backend.bucket_mb or 25,
        static_graph=backend.static_graph,
    )
