"""What a recipe is: one frozen dataclass whose fields are its knobs, with a model, data and a loss."""

import dataclasses
from abc import ABC, abstractmethod
from importlib import import_module
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from harness.parts.data import Data, default_collate
from harness.plan.check import check
from harness.plan.code import load_attribute
from harness.plan.config import RecipeConfig
from harness.plan.errors import UserError, did_you_mean
from harness.plan.plan import Plan

Split = Literal["train", "valid"]
Sum = tuple[Tensor, Tensor | int]
"""A sum over counted items (a scalar tensor) and their number. Means are formed after summing over all ranks."""

BUILT_IN = {
    "digits": "harness.recipes.digits:Digits",
    "images": "harness.recipes.images:Images",
    "bytes_lm": "harness.recipes.bytes_lm:BytesLM",
    "causal_lm": "harness.recipes.causal_lm:CausalLM",
}


@dataclasses.dataclass(frozen=True)
class Group:
    """Parameters that are trained alike. `lr` and `weight_decay` are factors of the plan's numbers."""

    parameters: list[nn.Parameter]
    lr: float = 1.0
    weight_decay: float = 1.0


class Recipe(ABC):
    """The user's one file. Subclass it as `@dataclass(frozen=True)`; the fields are knobs of the run file.

    A batch is what `collate` makes of samples, moved to the device: for a `Table`, a dict of its columns.
    """

    item: ClassVar[str] = "sample"
    """What the loss counts: "sample" or "token"."""
    workers: int = 0
    """Processes that fetch samples where the data is no `Table`. A recipe may make it a knob."""

    @property
    def augments(self) -> bool:
        """Whether batches carry `key`: int64 [n], a random number per sample and epoch, the same on every layout of GPUs."""
        return False

    @abstractmethod
    def model(self) -> nn.Module:
        """A fresh model. The caller has seeded torch."""

    @abstractmethod
    def data(self, split: Split) -> Data:
        """The samples of a split: a `Table` of tensors, or anything with `len()` and integer indexing."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Sum:
        """The summed loss of a batch (scalar tensor with a gradient) and the number of items in it (int or tensor)."""

    def metrics(self, model: nn.Module, batch: Any) -> dict[str, Sum]:
        """Sums and counts by name for evaluation; `loss` must be among them. The model is in eval mode, without gradients."""
        return {"loss": self.loss(model, batch)}

    def optimizer(self, model: nn.Module, plan: Plan) -> Optimizer | None:
        """An optimizer of the recipe's own, or None for the run file's `optim.name`. The engine sets the learning rate."""
        return None

    def groups(self, model: nn.Module) -> list[Group]:
        """Every parameter that is trained, in groups. By default norms, biases and scales (fewer than 2 axes) do not decay."""
        trained = [p for p in model.parameters() if p.requires_grad]
        return [Group([p for p in trained if p.ndim >= 2]), Group([p for p in trained if p.ndim < 2], weight_decay=0.0)]

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """The parts that are sharded, recomputed and compiled one by one. None: the whole model is one part."""
        return []

    def examples(self, model: nn.Module, batch: Any) -> list[dict[str, Any]]:
        """Rows to look at with each evaluation: plain values, and images as float [c, h, w] in 0..1. None by default."""
        return []

    def items_per_sample(self) -> float | None:
        """Items of one sample that the model computes, padding included, to tell padding_pct; None: unknown."""
        return 1.0 if self.item == "sample" else None

    def uniform_loss(self) -> float | None:
        """The loss of a model that has learnt nothing and says so: ln(classes). A run that stands there is dead. None: unknown."""
        return None

    def flops_per_item(self) -> float | None:
        """Floating-point operations of one training step per counted item, or None where nobody counted them."""
        return None

    def hugging_face(self, weights: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """(config.json, tensors by name) as Hugging Face's transformers read this model, or None where they know none like it."""
        return None

    def fingerprint(self) -> str | None:
        """Text that changes when the training data do, to be kept in checkpoints; None: taken from the data themselves."""
        return None

    def collate(self, samples: list[Any]) -> Any:
        """A batch from single samples, where the data is no `Table`."""
        return default_collate(samples)


def load_recipe(config: RecipeConfig) -> Recipe:
    """The recipe named in the run file, with its knobs checked. Raises UserError."""
    if ".py:" in config.use:
        kind = load_attribute("recipe.use", config.use)
    elif config.use in BUILT_IN:
        module, _, name = BUILT_IN[config.use].partition(":")
        kind = vars(import_module(module))[name]
    else:
        known = [*BUILT_IN, "file.py:Class"]
        raise UserError("recipe.use", f"{config.use!r} is no built-in recipe", did_you_mean(config.use, known))
    if not (isinstance(kind, type) and issubclass(kind, Recipe) and dataclasses.is_dataclass(kind)):
        raise UserError("recipe.use", f"{config.use} is no recipe", "make it `@dataclass(frozen=True) class ...(Recipe)`")
    known = [f.name for f in dataclasses.fields(kind)]
    for knob, value in config.knobs.items():
        if knob not in known:
            raise UserError(f"recipe.{knob}", f"is {value!r}, but {kind.__name__} has no such knob", did_you_mean(knob, known))
    try:
        return check(kind, config.knobs, prefix="recipe.")
    except TypeError as e:
        raise UserError("recipe.use", f"{config.use}: a field has a type no run file can hold ({e})", "use numbers and text") from e


def seed_torch(seed: int) -> None:
    """Seed the generators that models and dropout draw from, of the CPU and of this process's GPU."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(seed)
