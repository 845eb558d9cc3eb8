"""A script's own loop on DeepSpeed's ZeRO: the guard comes before its step, which Accelerate would take in the last backward."""

from typing import Any, final

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from harness.config.errors import UserError
from harness.data.feed import Micro
from harness.engine.buffers import Buffers, Kept
from harness.engine.device_scalars import on_device
from harness.engine.interface import Engine, Estimator
from harness.engine.model_setup import ModelSetup
from harness.engine.moment_noise import moments_estimator
from harness.engine.passes import Sums
from harness.engine.process import Process
from harness.engine.script import SETTING, ScriptCalls, check_held, set_up_script
from harness.engine.trained import listed
from harness.engine.training_engine import TrainingEngine
from harness.engine.zero import DeepSpeedStep, ZeroPasses
from harness.engine.zero_shards import ZeroState
from harness.plan.plan import Plan
from harness.recipes.base import Recipe


def open_script_zero(
    process: Process, plan: Plan, recipe: Recipe, accelerator: Accelerator, model: nn.Module, optimizer: Optimizer
) -> tuple[Engine, ScriptCalls]:
    """See open_script."""
    deepspeed: Any = model
    zero, bare = deepspeed.optimizer, deepspeed.module
    frozen = [name for name, p in bare.named_parameters() if not p.requires_grad]
    if frozen and plan.backend == "zero3":
        at = f"got zero3 with frozen weights ({listed(frozen)}), of which no rank knows a digest"
        raise UserError(SETTING, at, "use zero_stage 2, or write the script as a recipe")
    groups = zero.fp16_groups if plan.backend == "zero3" else zero.bit16_groups
    check_held(bare, {id(p) for group in groups for p in group})
    setup = set_up_script(process, plan, recipe, bare, optimizer, lambda p: vars(p).get("ds_tensor", p))
    passes = ScriptZeroPasses(process, plan, setup, moments_estimator(plan, process.config, optimizer), deepspeed, accelerator)
    return TrainingEngine(passes, DeepSpeedStep(passes), ZeroState(process, setup, zero)), passes.calls


@final
class ScriptZeroPasses(ZeroPasses):
    """Passes that the script runs on DeepSpeed's engine."""

    def __init__(
        self, process: Process, plan: Plan, setup: ModelSetup, estimator: Estimator, deepspeed: Any, accelerator: Accelerator
    ) -> None:
        super().__init__(process, plan, setup, estimator, deepspeed)
        self.calls = ScriptCalls(process, setup.model, accelerator, self._pass)
        self._stop = 0.0

    def _pass(self, total: Tensor, sums: Sums, last: bool) -> None:
        device = self.process.device
        self.backward(total, torch.stack([on_device(part, device, torch.float64) for part in sums]), last)

    @override
    def run(self, micro: Micro, stop: float, last: bool) -> Sums:
        """The script has run the pass. Its sums are reduced by now, but not `stop`."""
        self._stop += stop
        return self.calls.take(stop)

    @override
    def take(self) -> Tensor:
        stop, self._stop = torch.full((1,), self._stop, dtype=torch.float64, device=self.process.device), 0.0
        return torch.cat([super().take()[:2], self.process.reduce(stop)])

    @override
    def kept(self, buffers: Buffers) -> Kept:
        """The buffers from before the step's first pass, as the passes have run already."""
        return self.calls.before
