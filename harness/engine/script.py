"""The step of a script that owns its loop: it runs the passes on a model that Accelerate has prepared; the engine ends the step."""

from collections import deque
from typing import Any, final

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from harness.config.errors import UserError
from harness.config.schema import Config
from harness.data.feed import Micro
from harness.data.sample_order import derive
from harness.data.seeding import PASS, seed_all, seed_host
from harness.engine.buffers import Buffers, Kept
from harness.engine.device_scalars import Number, on_device, total_norm
from harness.engine.frozen import base_digests
from harness.engine.gradients import Gradients, ratio
from harness.engine.interface import Engine, Estimator
from harness.engine.model_setup import ModelSetup, set_up
from harness.engine.moment_noise import moments_estimator
from harness.engine.passes import Sums, as_sums
from harness.engine.process import Process, open_process
from harness.engine.replicated import Replicated
from harness.engine.torch_engine import torch_engine
from harness.engine.trained import listed
from harness.modeling.own_optimizer import check_state
from harness.modeling.tuned_optimizer import take_plan
from harness.plan.plan import Plan
from harness.recipes.base import Recipe

_PRECISIONS = {"no": "fp32", "bf16": "bf16"}
_KNOWN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
_SETTING = "Run"


def precision_of(accelerator: Accelerator) -> str:
    """The run file's word for a script's mixed precision. Raises UserError for what an own loop cannot do here."""
    if accelerator.distributed_type not in _KNOWN:
        kind = accelerator.distributed_type.value
        at = f"cannot end the steps of {kind}: its gradients or optimizer are not plain torch ones"
        raise UserError(_SETTING, at, "use DDP, or write the script as a recipe, which runs on fsdp and zero1 to zero3")
    if accelerator.mixed_precision not in _PRECISIONS:
        at = f"cannot take over mixed_precision {accelerator.mixed_precision}, whose loss scale Accelerate keeps"
        raise UserError(_SETTING, at, "use mixed_precision='bf16' or 'no', or write the script as a recipe")
    return _PRECISIONS[accelerator.mixed_precision]


def torch_optimizer(optimizer: Any) -> Optimizer:
    """The torch optimizer inside Accelerate's wrapper."""
    found: Optimizer = optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
    return found


def open_script(
    config: Config, plan: Plan, recipe: Recipe, accelerator: Accelerator, model: nn.Module, optimizer: Optimizer
) -> tuple[Engine, "ScriptPasses"]:
    """(the engine that ends a script's steps, the object with the calls around its passes): one process, or DDP.

    Raises UserError.
    """
    process = open_process(config, plan, cpu=accelerator.device.type == "cpu")
    if process.ranks > 1 and not isinstance(model, nn.parallel.DistributedDataParallel):
        at = f"got a {type(model).__name__} on {process.ranks} processes, whose gradients are not averaged"
        raise UserError(_SETTING, at, "give what accelerator.prepare(model, optimizer) returns")
    bare: nn.Module = accelerator.unwrap_model(model, keep_torch_compile=False)
    _check_optimizer(bare, optimizer)
    take_plan(optimizer, config, plan)
    layout = Replicated(process.ranks)
    setup = set_up(process, plan, bare, optimizer, base_digests(bare, recipe), layout.local)
    passes = config.watch.noise_scale and plan.passes > 1
    estimator: Estimator = "passes" if passes else moments_estimator(plan, config, optimizer)
    run = ScriptPasses(process, plan, setup, estimator, accelerator)
    return torch_engine(run, layout), run


def _check_optimizer(model: nn.Module, optimizer: Optimizer) -> None:
    """Raises UserError if the optimizer does not hold each trained weight, or keeps state where no checkpoint finds it."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    left = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in held]
    if left:
        at = f"got an optimizer that lacks {listed(left)}, which need a gradient"
        raise UserError(_SETTING, at, "give them to the optimizer, or set requires_grad_(False)")
    check_state(optimizer, _SETTING)


@final
class ScriptPasses(Gradients):
    """`begin_pass` and `add` are called around each pass of the script; the engine's step then uses their sums and gradients."""

    def __init__(self, process: Process, plan: Plan, setup: ModelSetup, estimator: Estimator, accelerator: Accelerator) -> None:
        super().__init__(process, plan, setup, estimator)
        self._accelerator, self._model = accelerator, setup.model
        self._buffers = Buffers(setup.model, process.device)
        self._before: Kept = []  # the buffers, from before the step's first pass
        self._pass_seed = derive(process.config.run.seed, PASS)
        self._seed_pass = seed_all if process.device.type == "cuda" else seed_host
        self._run: deque[Sums] = deque()

    def begin_step(self, passes: int) -> None:
        """A step of so many passes begins."""
        self._before = self._buffers.keep()
        self._run.clear()
        self._accelerator.step = 0
        self._accelerator.gradient_accumulation_steps = passes

    def begin_pass(self, micro: Micro) -> None:
        """The script will run a pass of `micro`. A padding pass leaves BatchNorm's running statistics alone."""
        padding = micro.chunk.padding
        if self._model.training == padding:
            self._model.train(not padding)
        self._seed_pass(derive(self._pass_seed, micro.chunk.start))

    def add(self, micro: Micro, loss: Tensor, count: Tensor | float | None, *, last: bool) -> None:
        """Backward of the pass of `micro`: `loss` is the mean over `count` items (None: the samples). Raises UserError."""
        accelerator = self._accelerator
        if self.process.ranks > 1 and accelerator.sync_gradients != last:
            at = f"is called in a step of {self.plan.passes} passes, which the script does not accumulate"
            raise UserError("run.backward", at, "put the pass in `with accelerator.accumulate(model):`")
        weight: Number = 0.0 if micro.chunk.padding else micro.chunk.count if count is None else count
        total = loss * weight
        accelerator.backward(total * accelerator.gradient_accumulation_steps)
        sums: Sums = (total.detach().to(self.process.dtype), weight, 0.0)
        if not self._run and self.estimator == "passes" and self.plan.passes > 1:
            self.small = total_norm(self.grads()) ** 2, sums[1]
        self._run.append(sums)

    @override
    def run(self, micro: Micro, stop: float, last: bool) -> Sums:
        """Not used: the script runs the pass."""
        loss, count, _ = self._run.popleft()
        return loss, count, stop

    @override
    def first_done(self, sums: Sums) -> None:
        """All passes have run by now: `add` has measured the first."""

    @override
    def reduce(self, grads: list[Tensor], local: Sums) -> tuple[Sums, Tensor, Number]:
        """DDP has left the mean over ranks of summed losses: times the ranks, it is the sum."""
        ranks, device = self.process.ranks, self.process.device
        if ranks > 1:
            own = torch.stack([on_device(part, device, self.process.dtype) for part in local])
            local = as_sums(self.process.reduce(own))
        return local, self.total(grads), ratio(float(ranks), local[1])

    @override
    def kept(self, buffers: Buffers) -> Kept:
        """The buffers from before the step's first pass, as the passes have run already."""
        return self._before
