"""Backend ddp: a whole copy per process; torch's DistributedDataParallel, set up by Accelerate, averages the gradients."""

import warnings
import weakref
from contextlib import nullcontext
from typing import Any, final

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook, bf16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from typing_extensions import override

from harness.config.errors import UserError
from harness.config.run_folder import ACCELERATE
from harness.config.schema import BackendConfig, Config
from harness.data.feed import Micro
from harness.engine.allreduce import Carried, Unit, open_unit
from harness.engine.device_scalars import Number
from harness.engine.gradients import Gradients, ratio
from harness.engine.interface import Engine
from harness.engine.passes import Sums, as_sums
from harness.engine.replicated import Replica, open_replica
from harness.engine.torch_engine import torch_engine
from harness.modeling.device_timer import Stamp, stamp
from harness.plan.plan import Plan
from harness.recipes.base import Recipe

POWERSGD_RANK = 4
MEASURED_EVERY = 4
"""Each rank's own gradients are measured, at the cost of a pass over them, in one of so many steps; in every step where the batch
follows the noise scale."""


def open_ddp(config: Config, plan: Plan, recipe: Recipe, *, cpu: bool) -> Engine:
    """The engine of one of several ranks, each with a whole model."""
    replica = open_replica(config, plan, recipe, cpu=cpu)
    return torch_engine(DdpAllReduce(replica, recipe, cpu=cpu), replica.layout)


@final
class DdpAllReduce(Gradients):
    """Gradients that DDP reduces, bucket by bucket while the backward runs."""

    def __init__(self, replica: Replica, recipe: Recipe, *, cpu: bool) -> None:
        process, plan = replica.process, replica.plan
        config, ranks = process.config, process.config.watch.noise_scale and plan.passes == 1 and replica.fp16 is None
        super().__init__(process, plan, replica.setup, "ranks" if ranks else replica.estimator, replica.fp16)
        self._backend, self._device, self._meters = config.backend, process.device, replica.setup.meters
        rounds = config.backend.compress != "none"
        # a static graph's first pass is reduced too: only means may be reduced twice
        self._added = not rounds and not config.backend.static_graph
        self._unit, self._cpu = open_unit(replica, recipe), cpu
        self._carried = Carried(self._unit, process, replica.fp16, added=self._added, rounds=rounds)
        self._fresh = True
        self._powersgd: PowerSGDState | None = None
        self._random_factors: dict[int, Tensor] = {}
        self._sent = True  # whether all buckets of a pass are on their way
        self._squares: list[Tensor] = []
        self._ready: Stamp = 0.0
        self._wrapped = wrap(self._unit, config, cpu=cpu)
        self._meters.waits_known = True
        self._every = 1 if plan.rule == "adascale" or config.batch.grow == "noise" else MEASURED_EVERY
        self._measuring = False
        self._hook(self._wrapped)

    @override
    def regroup(self) -> None:
        """The reducer, a C++ object, goes at once, and its hooks on the parameters with it; its wrapper waits for Python."""
        for name in ("reducer", "logger"):
            vars(self._wrapped).pop(name, None)  # already gone where a second rank is lost before they are made again
        self._carried.regroup()
        self._unit.carrier.grad = None
        self._fresh, self._sent, self._squares = True, True, []
        self._wrapped = wrap(self._unit, self.process.config, cpu=self._cpu, again=True)
        self._hook(self._wrapped)

    def _hook(self, wrapped: nn.parallel.DistributedDataParallel) -> None:
        """Register DDP's communication hook: gradients are reduced as they are, as bf16, or as low-rank factors (PowerSGD, Vogels
        et al. 2019, 1905.13727).

        Before the reduction they are measured: this rank's own squared norm, and when the last of them was ready. DDP's reducer, a
        C++ object, keeps the hook: the hook holds this object by a weak reference, or neither they nor the process group would ever
        be freed.
        """
        known = weakref.ref(self)
        plain = add_up if self._added else allreduce_hook
        travel: Any = {"none": plain, "bf16": bf16_compress_hook, "powersgd": powerSGD_hook}[self._backend.compress]
        if self._backend.compress == "powersgd":
            self._powersgd = PowerSGDState(None, matrix_approximation_rank=POWERSGD_RANK, start_powerSGD_iter=2)

        def measured(state: Any, bucket: GradBucket) -> torch.futures.Future[Tensor]:
            measuring = known()
            if measuring is not None:
                measuring._measure(bucket)
                measuring._meters.syncs += state is not None and state.iter >= state.start_powerSGD_iter  # torch waits there
            reduced: torch.futures.Future[Tensor] = travel(state, bucket)
            return reduced

        wrapped.register_comm_hook(self._powersgd, measured)

    def _measure(self, bucket: GradBucket) -> None:
        """Note that a bucket of this rank's own gradients is on its way, and in some steps their squared norm."""
        if self._measuring:
            own = [g for p, g in zip(bucket.parameters(), bucket.gradients(), strict=True) if p is not self._unit.carrier]
            self._squares += [norm**2 for norm in torch._foreach_norm(own)]
        self._ready = stamp(self._device)
        self._sent = bucket.is_last()

    @override
    def run(self, micro: Micro, stop: float, last: bool) -> Sums:
        # averages may be averaged again, so an early reduction only costs time; a static graph needs one in its first pass
        sync = last or (self._backend.static_graph and self._fresh)
        self._fresh = False
        self._measuring = self.estimator == "ranks" and micro.chunk.start // self.plan.global_batch % self._every == 0
        self._sent = False
        quiet: Any = nullcontext() if sync else self._wrapped.no_sync()
        with quiet:
            objective, sums = self._wrapped(micro, stop, self.divide)
            (self.fp16.scaled(objective) if self.fp16 else objective).backward()
        if sync and not self._sent:
            self._complete(objective)
        if last:
            self._meters.waited(self._ready, stamp(self._device))
        return as_sums(sums)

    def _complete(self, objective: Tensor) -> None:
        """Send the buckets that wait for parameters which this rank's pass has not used: other ranks may have."""
        self.setup.trained.check()
        unused = self.setup.trained.unreached(objective)
        if self.plan.passes == 1:  # a graph may hide uses (reentrant checkpointing): then the gradient shows them
            unused = [(name, p) for name, p in unused if p.grad is None]
        for name, p in unused:
            if p.grad is None:
                self.setup.unused.add(name)
        torch.autograd.backward([p for _, p in unused], [torch.zeros_like(p) for _, p in unused])
        if not self._sent:
            raise RuntimeError("the ranks' gradients were not all reduced: a parameter has no gradient, for an unknown reason")

    @override
    def reduce(self, grads: list[Tensor], local: Sums) -> tuple[Sums, Tensor, Number]:
        """The last backward has reduced everything."""
        if self._squares:  # of this rank's own gradient, as its own count is
            self.small = torch.stack(self._squares).sum(), local[1]
            self._squares = []
        sums, divided = self._carried.take(local), self._carried.parts * self.divide
        self.unscale(sums[1])
        return sums, self.total(grads), ratio(divided, sums[1])

    @override
    def moved(self, bad: Tensor) -> None:
        super().moved(bad)
        if self._powersgd is not None:
            self._drop_error(self._powersgd, bad != 0)

    def _drop_error(self, state: PowerSGDState, bad: Tensor) -> None:
        """PowerSGD keeps its approximation error and its factors for the next step: after a bad step they are NaN, so it begins
        with no error and random factors, the same on all ranks. The host is not asked."""
        for error in state.error_dict.values():
            error.masked_fill_(bad, 0.0)
        for number, factors in state.q_memory_dict.items():
            if number not in self._random_factors:
                draw = torch.Generator().manual_seed(number)
                self._random_factors[number] = torch.randn(factors.shape, generator=draw, dtype=factors.dtype).to(factors.device)
            torch.where(bad, self._random_factors[number], factors, out=factors)


def wrap(unit: Unit, config: Config, *, cpu: bool, again: bool = False) -> nn.parallel.DistributedDataParallel:
    """The unit wrapped in DDP; raises if Accelerate gives anything else.

    `again`: the weights stay in the tensors that others have views of (Accelerate's move from cpu to cpu:0 copies them), and each
    rank's buffers stay as they are.
    """
    accelerator = Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=[ddp_options(config.backend)])
    # frozen weights are known to be equal on all ranks, and may be of a type that gloo and NCCL cannot send (uint16, float8)
    ignored = [name for name, weight in unit.named_parameters() if not weight.requires_grad]
    ignored += [name for name, _ in unit.named_buffers()] if again else []
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(unit, ignored)  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        # torch 2.13 renames broadcast_buffers; the older versions that we support know the old name only
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
        wrapped = accelerator.prepare_model(unit, device_placement=not again)
    if not isinstance(wrapped, nn.parallel.DistributedDataParallel):
        raise UserError("backend.name", f"ddp asked for, Accelerate gave {type(wrapped).__name__}", f"check {ACCELERATE}")
    return wrapped


def add_up(state: Any, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """A bucket's gradients, added up over ranks."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda reduced: reduced.value()[0])  # type: ignore[no-any-return]


def ddp_options(backend: BackendConfig) -> DistributedDataParallelKwargs:
    """What DDP is asked for. Buffers are not broadcast: BatchNorm's statistics are averaged before they are used."""
    return DistributedDataParallelKwargs(
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
        bucket_cap_mb=backend.bucket_mb or 25,
        static_graph=backend.static_graph,
    )
