"""What the plan must know of each optimizer, without importing it: where it comes from, its family, its defaults."""

from dataclasses import dataclass
from typing import Literal

from harness.plan.errors import UserError, did_you_mean

Family = Literal["sgd", "adam", "sign"]


@dataclass(frozen=True)
class OptimizerFacts:
    """`source` is the class, by module. `family` decides the rule `auto` and the warnings.

    sgd: the update is linear in the gradient, so the linear rule has a theory (Goyal et al. 2017).
    adam: the update is divided by a running gradient magnitude (Malladi et al. 2022).
    sign: the update's size does not depend on the gradient's.

    `sharded`: it works on the sharded tensors of backend fsdp. pytorch_optimizer's norms per layer do not.
    `elementwise`: each element is updated by itself, so that it works on the flat slices of zero1 to zero3, which know no layers.
    """

    source: str
    family: Family
    momentum: float | None = None
    betas: tuple[float, float] | None = None
    eps: float | None = None
    nesterov: bool = False
    sharded: bool = True
    elementwise: bool = True


_ADAM = (0.9, 0.999)

OPTIMIZERS: dict[str, OptimizerFacts] = {
    "sgd": OptimizerFacts("torch.optim.SGD", "sgd", momentum=0.0),
    "nesterov": OptimizerFacts("torch.optim.SGD", "sgd", momentum=0.9, nesterov=True),
    "adam": OptimizerFacts("torch.optim.Adam", "adam", betas=_ADAM, eps=1e-8),
    "adamw": OptimizerFacts("torch.optim.AdamW", "adam", betas=_ADAM, eps=1e-8),
    "nadam": OptimizerFacts("torch.optim.NAdam", "adam", betas=_ADAM, eps=1e-8),
    "radam": OptimizerFacts("torch.optim.RAdam", "adam", betas=_ADAM, eps=1e-8),
    "adamax": OptimizerFacts("torch.optim.Adamax", "adam", betas=_ADAM, eps=1e-8),
    "adagrad": OptimizerFacts("torch.optim.Adagrad", "adam", eps=1e-10),
    "rmsprop": OptimizerFacts("torch.optim.RMSprop", "adam", momentum=0.0, eps=1e-8),
    "lars": OptimizerFacts("pytorch_optimizer.LARS", "sgd", momentum=0.9, sharded=False, elementwise=False),
    "lamb": OptimizerFacts("pytorch_optimizer.Lamb", "adam", betas=_ADAM, eps=1e-6, sharded=False, elementwise=False),
    "adafactor": OptimizerFacts("torch.optim.Adafactor", "adam", sharded=False, elementwise=False),
    "muon": OptimizerFacts("pytorch_optimizer.Muon", "sign", momentum=0.95, sharded=False, elementwise=False),
    "lion": OptimizerFacts("pytorch_optimizer.Lion", "sign", betas=(0.9, 0.99)),
}


def optimizer_facts(name: str) -> OptimizerFacts:
    """The facts of one optimizer. Raises UserError on a name that is not in the table."""
    if name not in OPTIMIZERS:
        raise UserError("optim.name", f"{name!r} is not an optimizer we know", did_you_mean(name, list(OPTIMIZERS)))
    return OPTIMIZERS[name]
