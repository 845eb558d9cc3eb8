"""DeepSpeed as every engine here sets it up: joined to our process group, configured by our settings, and checked.

Called directly and not through Accelerator.prepare, which needs transformers installed, counts micro-batches itself (so that a
short last window steps at the wrong place) and divides by a fixed accumulation.
"""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from harness.config.errors import UserError
from harness.engine.deepspeed_build import build_cpu_ops
from harness.engine.process import join_alone
from harness.modeling.memory_layout import check_row_major


def open_deepspeed(module: nn.Module, optimizer: Optimizer, settings: Mapping[str, Any], device: torch.device) -> Any:
    """The DeepSpeed engine over `module` and `optimizer`, on the ranks that have joined. Raises UserError."""
    check_row_major(module, "DeepSpeed")
    os.environ.setdefault("LOCAL_RANK", "0")
    deepspeed = import_deepspeed(cpu=device.type == "cpu")
    join_alone(device)
    with redirect_stdout(sys.stderr):  # its messages do not concern a user
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=dict(settings))
    found = int(engine.zero_optimization_stage())
    if found != settings["zero_optimization"]["stage"]:
        asked = settings["zero_optimization"]["stage"]
        raise UserError("backend.name", f"zero{asked} asked for, DeepSpeed gave stage {found}", "check backend.deepspeed")
    return engine


def import_deepspeed(*, cpu: bool) -> Any:
    """DeepSpeed, imported for this device. Raises UserError."""
    if cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        import deepspeed
    except ImportError as e:
        raise UserError("backend.name", f"DeepSpeed cannot be imported: {e}", "pip install deepspeed, or use fsdp") from e
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    if cpu:
        build_cpu_ops()
    return deepspeed


def evaluate_first(model: nn.Module) -> None:
    """Let a model of zero3 be evaluated before its first step.

    A weight that one module takes from another (tied embeddings) is gathered when a forward meets it. DeepSpeed looks for such
    weights within its own forward only, by this flag, which that takes away again.
    """
    for module in model.modules():
        module._parameters._in_forward = True  # type: ignore[attr-defined]


def accumulate(engine: Any, objective: torch.Tensor, last: bool) -> None:
    """Backward of one pass. The boundary is set by hand: a short last window has fewer passes than the settings say.

    Of the module's very output DeepSpeed divides the gradient by its accumulation in spite of scale_wrt_gas=False (measured with
    0.19.8), because its hook on outputs runs before the one on the loss; so the loss is made another tensor.
    """
    engine.set_gradient_accumulation_boundary(last)
    engine.backward(objective * 1, scale_wrt_gas=False)


def before_reduction(engine: Any, look: Callable[[], None]) -> None:
    """Have `look` called after each backward, before DeepSpeed reduces the gradients that it has not reduced on the way."""
    reduce = engine.allreduce_gradients

    def looked(*args: Any, **options: Any) -> None:
        look()
        reduce(*args, **options)

    engine.allreduce_gradients = looked


def full_gradient(parameter: nn.Parameter) -> torch.Tensor | None:
    """The reduced gradient of `parameter`, gathered from the ranks that hold parts of it: all call this."""
    from deepspeed.utils import safe_get_full_grad

    found: torch.Tensor | None = safe_get_full_grad(parameter)
    return found


def override_loss_scale(zero: Any, scale: float) -> None:
    """Say how many times too large the gradients of DeepSpeed's optimizer `zero` are: before a backward and before the step.

    zero1 in bf16 has an optimizer that knows no scale: there, before the step, the gradients themselves are divided.
    """
    gradients = vars(zero).get("fp32_groups_gradients_flat")
    if gradients is None:
        zero.override_loss_scale(scale)
    elif scale not in (0.0, 1.0):
        torch._foreach_div_(gradients, scale)


def loss_scale(zero: Any, precision: str) -> float:
    """The loss scale that DeepSpeed's optimizer `zero` searches for fp16; 1 in other precisions."""
    return float(zero.loss_scaler.cur_scale) if precision == "fp16" else 1.0
