"""The step of a script that owns its loop: it runs the passes on a model that Accelerate has prepared; the engine ends the step."""

import os
from collections import deque
from collections.abc import Callable
from typing import Any, final

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.optim import Optimizer

from harness.config.errors import UserError
from harness.config.schema import Config
from harness.data.feed import Micro
from harness.data.sample_order import derive
from harness.data.seeding import PASS, seed_all, seed_host
from harness.engine.buffers import Buffers, Kept
from harness.engine.device_scalars import Number
from harness.engine.frozen import base_digests
from harness.engine.interface import Engine
from harness.engine.model_setup import ModelSetup, set_up
from harness.engine.passes import Sums
from harness.engine.process import Process, open_process
from harness.engine.trained import listed
from harness.modeling.own_optimizer import check_state
from harness.modeling.tuned_optimizer import take_plan
from harness.plan.plan import Plan
from harness.recipes.base import Recipe

_PRECISIONS = {"no": "fp32", "bf16": "bf16"}
_WHOLE = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
_ASKED = {
    "--use_fsdp": ("ACCELERATE_USE_FSDP", DistributedType.FSDP, "start CPU ranks without it"),
    "--use_deepspeed": (
        "ACCELERATE_USE_DEEPSPEED",
        DistributedType.DEEPSPEED,
        "write Accelerator(kwargs_handlers=[InitProcessGroupKwargs(backend='gloo')]) in place of cpu=True",
    ),
}
SETTING = "Run"
Backward = Callable[[Tensor, Sums, bool], None]
"""(summed loss of a pass, its sums, whether it is a step's last) -> its gradients, with those of the passes before."""


def backend_of(accelerator: Accelerator) -> str:
    """The run file's word for how a script's Accelerator shards. Raises UserError for what an own loop cannot do here."""
    state = accelerator.state
    kind = state.distributed_type
    for option, (variable, wanted, remedy) in _ASKED.items():
        if os.environ.get(variable, "false").lower() == "true" and kind != wanted:
            at = f"was started with {option}, but Accelerate has dropped it on {accelerator.device.type}: no rank has a shard"
            raise UserError(SETTING, at, remedy)
    if kind == DistributedType.FSDP:
        return _fsdp(state.fsdp_plugin)
    if kind == DistributedType.DEEPSPEED:
        return _zero(state.deepspeed_plugin.zero_stage)
    if kind not in _WHOLE:
        raise UserError(SETTING, f"cannot end the steps of {kind.value}", "use DDP, FSDP2 or DeepSpeed's ZeRO")
    return "ddp"


def _fsdp(plugin: Any) -> str:
    if plugin.fsdp_version != 2:
        at = "got FSDP1, whose flat parameters have no names of their own"
        raise UserError(SETTING, at, "use accelerate launch --use_fsdp --fsdp_version 2")
    if plugin.activation_checkpointing:
        at = "got fsdp_activation_checkpointing, which renames weights, so that no other layout could load them"
        raise UserError(SETTING, at, "leave it out, and let the model recompute (torch.utils.checkpoint)")
    return "fsdp"


def _zero(stage: int) -> str:
    if stage == 0:
        at = "got DeepSpeed with zero_stage 0, which shards nothing"
        raise UserError(SETTING, at, "use DDP, which does the same, or zero_stage 1 to 3")
    return f"zero{stage}"


def precision_of(accelerator: Accelerator) -> str:
    """The run file's word for a script's mixed precision. Raises UserError for what an own loop cannot do here."""
    if accelerator.mixed_precision not in _PRECISIONS:
        at = f"cannot take over mixed_precision {accelerator.mixed_precision}, whose loss scale Accelerate keeps"
        raise UserError(SETTING, at, "use mixed_precision='bf16' or 'no', or write the script as a recipe")
    if accelerator.mixed_precision != "no" and accelerator.distributed_type == DistributedType.DEEPSPEED:
        at = "got bf16 under DeepSpeed, which has rounded the script's weights before they are known here"
        raise UserError(SETTING, at, "use mixed_precision='no', FSDP2, or write the script as a recipe")
    return _PRECISIONS[accelerator.mixed_precision]


def torch_optimizer(optimizer: Any) -> Optimizer:
    """The torch optimizer inside the wrappers of Accelerate and DeepSpeed. Raises UserError for several."""
    if isinstance(optimizer, list | tuple | dict):
        at = f"got {len(optimizer)} optimizers, and a step has one"
        raise UserError(SETTING, at, "give one; for several that alternate see configs/examples/gan_run.py")
    outer = optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
    found: Optimizer = outer if isinstance(outer, Optimizer) else outer.optimizer  # DeepSpeed's holds torch's
    return found


def open_script(
    config: Config, plan: Plan, recipe: Recipe, accelerator: Accelerator, model: nn.Module, optimizer: Optimizer
) -> tuple[Engine, "ScriptCalls"]:
    """(the engine that ends a script's steps, the object with the calls around its passes). Raises UserError."""
    process = open_process(config, plan, cpu=accelerator.device.type == "cpu")
    check_state(optimizer, SETTING)
    take_plan(optimizer, config, plan)
    parts = process, plan, recipe, accelerator, model, optimizer
    match plan.backend:
        case "ddp":
            from harness.engine.script_ddp import open_script_ddp

            return open_script_ddp(*parts)
        case "fsdp":
            from harness.engine.script_fsdp import open_script_fsdp

            return open_script_fsdp(*parts)
        case _:
            from harness.engine.script_zero import open_script_zero

            return open_script_zero(*parts)


def bare_model(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    """The script's own model inside what Accelerate has made of it."""
    found: nn.Module = accelerator.unwrap_model(model, keep_torch_compile=False)
    return found


def set_up_script(
    process: Process, plan: Plan, recipe: Recipe, model: nn.Module, optimizer: Optimizer, local: Callable[[Tensor], Tensor]
) -> ModelSetup:
    """The setup of a script's bare model."""
    return set_up(process, plan, model, optimizer, base_digests(model, recipe), local)


def check_held(model: nn.Module, held: set[int]) -> None:
    """Raises UserError if a trained weight is not among those with these ids, which the optimizer holds."""
    left = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in held]
    if left:
        at = f"got an optimizer that lacks {listed(left)}, which need a gradient"
        raise UserError(SETTING, at, "give them to the optimizer, or set requires_grad_(False)")


def held_by(optimizer: Optimizer) -> set[int]:
    """The ids of what an optimizer moves."""
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


@final
class ScriptCalls:
    """The calls around each pass of a script. `done` has the sums of the step's passes so far; `backward`: see Backward."""

    def __init__(self, process: Process, model: nn.Module, accelerator: Accelerator, backward: Backward) -> None:
        self._process, self._model, self._accelerator, self._backward = process, model, accelerator, backward
        self._buffers = Buffers(model, process.device)
        self._pass_seed = derive(process.config.run.seed, PASS)
        self._seed_pass = seed_all if process.device.type == "cuda" else seed_host
        self._passes = 0
        self.done: deque[Sums] = deque()
        self.before: Kept = []
        """The buffers, from before the step's first pass."""

    def begin_step(self, passes: int) -> None:
        """A step of so many passes begins."""
        self.before = self._buffers.keep()
        self.done.clear()
        self._passes = passes
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
        if self._process.ranks > 1 and self._accelerator.sync_gradients != last:
            at = f"is called in a step of {self._passes} passes, which the script does not accumulate"
            raise UserError("run.backward", at, "put the pass in `with accelerator.accumulate(model):`")
        weight: Number = 0.0 if micro.chunk.padding else micro.chunk.count if count is None else count
        total = loss * weight
        sums: Sums = (total.detach().to(self._process.dtype), weight, 0.0)
        self._backward(total, sums, last)
        self.done.append(sums)

    def take(self, stop: float) -> Sums:
        """The sums of the next pass that has run, with its stop flag."""
        loss, count, _ = self.done.popleft()
        return loss, count, stop
