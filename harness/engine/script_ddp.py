"""A script's own loop in one process or on DDP, whose ranks have whole models."""

from typing import final

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from harness.config.errors import UserError
from harness.data.feed import Micro
from harness.engine.buffers import Buffers, Kept
from harness.engine.device_scalars import Number, on_device, total_norm
from harness.engine.gradients import Gradients, ratio
from harness.engine.interface import Engine, Estimator
from harness.engine.model_setup import ModelSetup
from harness.engine.moment_noise import moments_estimator
from harness.engine.passes import Sums, as_sums
from harness.engine.process import Process
from harness.engine.replicated import Replicated
from harness.engine.script import SETTING, ScriptCalls, bare_model, check_held, held_by, set_up_script
from harness.engine.torch_engine import torch_engine
from harness.plan.plan import Plan
from harness.recipes.base import Recipe


def open_script_ddp(
    process: Process, plan: Plan, recipe: Recipe, accelerator: Accelerator, model: nn.Module, optimizer: Optimizer
) -> tuple[Engine, ScriptCalls]:
    """See open_script."""
    if process.ranks > 1 and not isinstance(model, nn.parallel.DistributedDataParallel):
        at = f"got a {type(model).__name__} on {process.ranks} processes, whose gradients are not averaged"
        raise UserError(SETTING, at, "give what accelerator.prepare(model, optimizer) returns")
    bare, layout = bare_model(accelerator, model), Replicated(process.ranks)
    check_held(bare, held_by(optimizer))
    setup = set_up_script(process, plan, recipe, bare, optimizer, layout.local)
    passes = process.config.watch.noise_scale and plan.passes > 1
    estimator: Estimator = "passes" if passes else moments_estimator(plan, process.config, optimizer)
    run = ScriptGradients(process, plan, setup, estimator, accelerator)
    return torch_engine(run, layout), run.calls


@final
class ScriptGradients(Gradients):
    """Gradients that the script's passes leave with the weights, as DDP's means over ranks."""

    def __init__(self, process: Process, plan: Plan, setup: ModelSetup, estimator: Estimator, accelerator: Accelerator) -> None:
        super().__init__(process, plan, setup, estimator)
        self._accelerator = accelerator
        self.calls = ScriptCalls(process, setup.model, accelerator, self._backward)

    def _backward(self, total: Tensor, sums: Sums, last: bool) -> None:
        """Accelerate divides by the passes of a step."""
        first = not self.calls.done
        self._accelerator.backward(total * self._accelerator.gradient_accumulation_steps)
        if first and self.estimator == "passes" and self.plan.passes > 1:
            self.small = total_norm(self.grads()) ** 2, sums[1]

    @override
    def run(self, micro: Micro, stop: float, last: bool) -> Sums:
        """The script has run the pass."""
        return self.calls.take(stop)

    @override
    def first_done(self, sums: Sums) -> None:
        """All passes have run by now: `_backward` has measured the first."""

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
        return self.calls.before
