"""The plan's optimizer and its learning rate as torch's own objects, for the loops of other tools."""

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from harness.modeling.optimizer import build_optimizer
from harness.plan.plan import Plan
from harness.recipes.script import Script


def planned(model: nn.Module, plan: Plan) -> tuple[Optimizer, LambdaLR]:
    """(the plan's optimizer over the model's weights, a scheduler by which step n runs at `plan.lr(n)`).

    Norms, biases and scales do not decay, as in a recipe. Step the scheduler once for each optimizer step, on every process once.
    Raises UserError where the optimizer is not installed, or no parameter of `model` needs a gradient.
    """
    optimizer = build_optimizer(plan, Script((), list, 0), model, fused=False)
    for group in optimizer.param_groups:
        group["lr"] = plan.target_lr * group["lr_scale"]
    return optimizer, LambdaLR(optimizer, lambda step: plan.lr(step) / plan.target_lr)
