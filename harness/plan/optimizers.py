"""What the plan must know of each optimizer, without importing it: where it comes from, its family, its defaults."""

from dataclasses import dataclass
from typing import Literal

from harness.config.errors import UserError, nearest
from harness.plan.installed_optimizers import installed, sources

Family = Literal["sgd", "adam", "sign", "unknown"]


@dataclass(frozen=True)
class OptimizerFacts:
    """`source` is the class, by module. `family` decides the rule `auto` and the warnings.

    sgd: the update is linear in the gradient, so the linear rule has a theory (Goyal et al. 2017).
    adam: the update is divided by a running gradient magnitude (Malladi et al. 2022).
    sign: the update's size does not depend on the gradient's. For Muon, betas and eps are those of the AdamW beside it.
    unknown: any other class of torch.optim or pytorch_optimizer, or of a file (`source` is then `file.py:Class`). It gets
    the rate and the decay, and defaults for the rest.

    `alpha` is the decay rate of RMSprop's squared gradients, what beta2 is to Adam.
    `decay`: decoupled, the weights shrink by lr x decay a step; coupled, the decay is added to the gradient, and an optimizer that
    divides the gradient by its size divides the decay too.
    `sharded`: it works on the sharded tensors of backend fsdp. pytorch_optimizer's norms per layer do not.
    `elementwise`: each element is updated by itself, so that it works on the flat slices of zero1 to zero3, which know no layers.
    """

    source: str
    family: Family
    momentum: float | None = None
    betas: tuple[float, float] | None = None
    alpha: float | None = None
    eps: float | None = None
    decay: Literal["coupled", "decoupled"] = "coupled"
    nesterov: bool = False
    sharded: bool = True
    elementwise: bool = True

    @property
    def has_timescale(self) -> bool:
        """Whether weight decay acts over B/(lr wd) samples: where it is decoupled, or nothing divides the gradient."""
        return self.decay == "decoupled" or self.family == "sgd"


_ADAM = (0.9, 0.999)

OPTIMIZERS: dict[str, OptimizerFacts] = {
    "sgd": OptimizerFacts("torch.optim.SGD", "sgd", momentum=0.0),
    "nesterov": OptimizerFacts("torch.optim.SGD", "sgd", momentum=0.9, nesterov=True),
    "adam": OptimizerFacts("torch.optim.Adam", "adam", betas=_ADAM, eps=1e-8),
    "adamw": OptimizerFacts("torch.optim.AdamW", "adam", decay="decoupled", betas=_ADAM, eps=1e-8),
    "nadam": OptimizerFacts("torch.optim.NAdam", "adam", betas=_ADAM, eps=1e-8),
    "radam": OptimizerFacts("torch.optim.RAdam", "adam", betas=_ADAM, eps=1e-8),
    "adamax": OptimizerFacts("torch.optim.Adamax", "adam", betas=_ADAM, eps=1e-8),
    "adagrad": OptimizerFacts("torch.optim.Adagrad", "adam", eps=1e-10),
    "rmsprop": OptimizerFacts("torch.optim.RMSprop", "adam", momentum=0.0, alpha=0.99, eps=1e-8),
    "lars": OptimizerFacts("pytorch_optimizer.LARS", "sgd", momentum=0.9, sharded=False, elementwise=False),
    "lamb": OptimizerFacts(
        "pytorch_optimizer.Lamb", "adam", decay="decoupled", betas=_ADAM, eps=1e-6, sharded=False, elementwise=False
    ),
    "adafactor": OptimizerFacts("torch.optim.Adafactor", "adam", decay="decoupled", sharded=False, elementwise=False),
    "muon": OptimizerFacts(
        "torch.optim.Muon", "sign", decay="decoupled", momentum=0.95, betas=(0.9, 0.95), eps=1e-8, sharded=False, elementwise=False
    ),
    "lion": OptimizerFacts("pytorch_optimizer.Lion", "sign", decay="decoupled", betas=(0.9, 0.99)),
}


def optimizer_facts(name: str) -> OptimizerFacts:
    """The facts of one optimizer: of the table, or what can be said of any other that is installed. Raises UserError."""
    if name in OPTIMIZERS:
        return OPTIMIZERS[name]
    if ":" in name:
        return OptimizerFacts(name, "unknown", sharded=False, elementwise=False)
    others = sources()
    if name in others:
        return OptimizerFacts(others[name], "unknown", sharded=False, elementwise=False)
    near = nearest(name, [*OPTIMIZERS, *others])
    more = "" if installed("pytorch_optimizer") else "; for those of pytorch_optimizer: pip install 'widebatch[optimizers]'"
    remedy = (
        f"did you mean {near}?" if near else f"known: {', '.join(OPTIMIZERS)}, and the classes of torch.optim and pytorch_optimizer"
    )
    raise UserError("optim.name", f"{name!r} is not an optimizer we know", f"{remedy}{more}")
