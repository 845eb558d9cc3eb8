"""A script's own loop on FSDP2: Accelerate has called fully_shard; here gradients are made sums, and steps are ended on shards."""

from typing import final

from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from typing_extensions import override

from harness.config.errors import UserError
from harness.data.feed import Micro
from harness.engine.buffers import Buffers, Kept
from harness.engine.device_scalars import Number
from harness.engine.fsdp import reduce_shards, shard_grads, sum_gradients
from harness.engine.fsdp_layout import Shards
from harness.engine.gradients import Gradients
from harness.engine.interface import Engine
from harness.engine.model_setup import ModelSetup
from harness.engine.moment_noise import moments_estimator
from harness.engine.passes import Sums
from harness.engine.process import Process
from harness.engine.script import SETTING, ScriptCalls, bare_model, check_held, held_by, set_up_script
from harness.engine.torch_engine import torch_engine
from harness.engine.trained import listed
from harness.plan.plan import Plan
from harness.recipes.base import Recipe


def open_script_fsdp(
    process: Process, plan: Plan, recipe: Recipe, accelerator: Accelerator, model: nn.Module, optimizer: Optimizer
) -> tuple[Engine, ScriptCalls]:
    """See open_script."""
    bare = bare_model(accelerator, model)
    shards = [p for p in bare.parameters() if isinstance(p, DTensor)]
    left = [name for name, p in bare.named_parameters() if not isinstance(p, DTensor) or not p.requires_grad]
    if not shards or left:
        at = f"got FSDP2 with weights that are frozen or not sharded ({listed(left)}): no digest or gradient of them is known"
        raise UserError(SETTING, at, "train and shard all of them, or write the script as a recipe")
    check_held(bare, held_by(optimizer))
    sum_gradients(bare)
    layout = Shards(bare, shards[0].device_mesh)
    setup = set_up_script(process, plan, recipe, bare, optimizer, layout.local)
    run = ScriptShards(process, plan, setup, accelerator, layout.copies)
    return torch_engine(run, layout), run.calls


@final
class ScriptShards(Gradients):
    """Gradients that FSDP2 sums over ranks, each rank its shards. `copies` ranks hold the same shard."""

    def __init__(self, process: Process, plan: Plan, setup: ModelSetup, accelerator: Accelerator, copies: int) -> None:
        super().__init__(process, plan, setup, moments_estimator(plan, process.config, setup.optimizer))
        self._accelerator, self._copies = accelerator, copies
        self.calls = ScriptCalls(process, setup.model, accelerator, self._backward)

    def _backward(self, total: Tensor, sums: Sums, last: bool) -> None:
        """Accelerate divides by the passes of a step."""
        self._accelerator.backward(total * self._accelerator.gradient_accumulation_steps)

    @override
    def run(self, micro: Micro, stop: float, last: bool) -> Sums:
        """The script has run the pass."""
        return self.calls.take(stop)

    @override
    def grads(self) -> list[Tensor]:
        return shard_grads(self.params)

    @override
    def reduce(self, grads: list[Tensor], local: Sums) -> tuple[Sums, Tensor, Number]:
        return reduce_shards(self.process, grads, local, self._copies)

    @override
    def kept(self, buffers: Buffers) -> Kept:
        """The buffers from before the step's first pass, as the passes have run already."""
        return self.calls.before
