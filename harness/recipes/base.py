"""What a recipe is: one frozen dataclass whose fields are its knobs, with a model, data and a loss."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from harness.config.errors import UserError, did_you_mean
from harness.config.schema import RecipeConfig
from harness.config.user_code import load_attribute
from harness.config.validate import check, strip_caches
from harness.data.feed import Data, default_collate
from harness.data.sample_order import derive
from harness.data.seeding import DATA, seed_all
from harness.plan.plan import Plan
from harness.recipes.preview import preview

Split = Literal["train", "valid"]
Sum = tuple[Tensor, Tensor | int]
"""A sum over counted items (a scalar tensor) and their number. Means are formed after summing over all ranks."""

Given = Data | Mapping[str, Data] | None
"""What a recipe may give as data."""

BUILT_IN = {
    "digits": "harness.recipes.digits:Digits",
    "images": "harness.recipes.images:Images",
    "bytes_lm": "harness.recipes.bytes_lm:BytesLM",
    "causal_lm": "harness.recipes.causal_lm:CausalLM",
    "chat": "harness.recipes.chat:Chat",
    "tokens": "harness.recipes.tokens:Tokens",
}

SCRIPT = "script"
"""recipe.use of a run whose loop is a script's own (`harness.Run`)."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Parameters that are trained alike. `lr` and `weight_decay` are factors of the plan's numbers."""

    parameters: list[nn.Parameter]
    lr: float = 1.0
    weight_decay: float = 1.0


class Recipe(ABC):
    """What is trained: model, data and loss. Subclass it as `@dataclass(frozen=True)`; its fields are settings of the run file.

    A setting with a method's name is a field with an underscore behind it: `data_` for `recipe.data`.

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

    @property
    def gathers(self) -> bool:
        """Whether `loss` or the model gathers over ranks (contrastive losses, SyncBatchNorm). Set `gathers = True` then.

        Each pass has equally many rows on every rank: what would not is refused, and evaluations leave out the rows of the last,
        uneven one. There is no accumulation and no simulated world, in which the loss would be another one.
        """
        return False

    @abstractmethod
    def model(self) -> nn.Module:
        """A fresh model. The generators of torch, numpy and Python's `random` are seeded, for all ranks alike."""

    @abstractmethod
    def data(self, split: Split) -> Given:
        """The samples of a split: a `Table` of tensors, or anything with `len()` and integer indexing.

        None for "valid": the run is never evaluated. A dict for "valid": several sets by name, each evaluated by itself too. The
        generators of torch, numpy and Python's `random` are seeded, for all splits and ranks alike: `random_split` cuts the same
        parts each time.
        """

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Sum:
        """The summed loss of a batch (float tensor [], with a gradient) and the number of items in it (int, or int64 tensor [])."""

    def metrics(self, model: nn.Module, batch: Any) -> dict[str, Sum]:
        """(sum, count) by name for evaluation, as `loss` gives them; `loss` must be among them. The model is in eval mode.

        A name that a batch lacks counts nothing there.
        """
        return {"loss": self.loss(model, batch)}

    def outputs(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """What `score` needs of a validation batch: tensors [n, ...] by name, a row per sample. Empty by default.

        The rows of all ranks are gathered on the host of rank 0, each sample once and in the order of the data.
        """
        return {}

    def score(self, outputs: dict[str, Tensor]) -> dict[str, float]:
        """Metrics over all predictions, such as AUC or mAP, from the rows that `outputs` gave for the whole validation split."""
        return {}

    def optimizer(self, model: nn.Module, plan: Plan) -> Optimizer | None:
        """An optimizer of the recipe's own, or None for the run file's `optim.name`. The engine sets the learning rate."""
        return None

    def groups(self, model: nn.Module) -> list[Group]:
        """Every parameter that is trained, in groups. By default norms, biases and scales (fewer than 2 axes) do not decay."""
        trained = [p for p in model.parameters() if p.requires_grad]
        return [Group([p for p in trained if p.ndim >= 2]), Group([p for p in trained if p.ndim < 2], weight_decay=0.0)]

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """The parts that are sharded, recomputed and compiled one by one. Empty (default): the whole model is one part."""
        return []

    def examples(self, model: nn.Module, batch: Any) -> list[dict[str, Any]]:
        """Rows to look at with each evaluation: plain values, and images as float [c, h, w] in 0..1. Empty by default."""
        return []

    def preview(self, sample: Any) -> str:
        """One line about a training sample (of a Table, a dict of one row's columns), as `widebatch samples` shows it."""
        return preview(sample)

    def items_per_sample(self) -> float | None:
        """Items of one sample that the model computes, padding included, for throughput/padding_pct; None: unknown."""
        return 1.0 if self.item == "sample" else None

    def uniform_loss(self) -> float | None:
        """The loss of an untrained model, such as ln(classes): a run that stays there counts as dead. None: unknown."""
        return None

    def flops_per_item(self) -> float | None:
        """Floating-point operations of one training step per counted item, or None (default): they are counted."""
        return None

    def hugging_face(self, weights: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """(config.json, tensors by name) as Hugging Face's transformers read this model, or None if they know none like it."""
        return None

    def hugging_face_files(self, out: Path) -> None:  # noqa: B027  most recipes have none
        """Write into the folder of `hugging_face` what belongs beside config.json and weights, such as the tokenizer."""

    def adapter_files(self, weights: dict[str, Tensor], out: Path) -> None:
        """Write the trained adapters alone into the folder `out`, as peft reads them. Raises UserError if there are none."""
        raise UserError("--adapter", f"is given, but {type(self).__name__} has no adapters", "leave it out")

    def fingerprint(self) -> str | None:
        """Text that changes when the training data do, kept in checkpoints. None (default): taken from the data."""
        return None

    def collate(self, samples: list[Any]) -> Any:
        """A batch from single samples, where the data is no `Table`."""
        return default_collate(samples)


def import_built_in(config: RecipeConfig) -> None:
    """Import the module of a built-in recipe; a user's own file is left alone."""
    if config.use in BUILT_IN:
        import_module(BUILT_IN[config.use].partition(":")[0])


def load_recipe(config: RecipeConfig) -> Recipe:
    """The recipe named in the run file, with its knobs checked. Raises UserError."""
    if ":" in config.use:
        kind = load_attribute("recipe.use", config.use)
    elif config.use in BUILT_IN:
        module, _, name = BUILT_IN[config.use].partition(":")
        kind = vars(import_module(module))[name]
    elif config.use == SCRIPT:
        raise UserError("recipe.use", f"is {SCRIPT}: this run was started by a training script", "run that script again")
    else:
        known = [*BUILT_IN, "file.py:Class", "package.module:Class"]
        raise UserError("recipe.use", f"{config.use!r} is not a built-in recipe", did_you_mean(config.use, known))
    if not (isinstance(kind, type) and issubclass(kind, Recipe) and dataclasses.is_dataclass(kind)):
        raise UserError("recipe.use", f"{config.use} is not a recipe", "make it `@dataclass(frozen=True) class ...(Recipe)`")
    known = {f.name.removesuffix("_"): f.name for f in dataclasses.fields(kind)}
    for knob, value in config.knobs.items():
        if knob not in known:
            raise UserError(f"recipe.{knob}", f"is {value!r}, but {kind.__name__} has no such field", did_you_mean(knob, [*known]))
    try:
        return check(kind, {known[knob]: value for knob, value in config.knobs.items()}, prefix="recipe.")
    except UserError as e:
        raise UserError(e.setting.removesuffix("_"), e.problem, e.remedy) from None
    except TypeError as e:
        raise UserError("recipe.use", f"{config.use}: a field has a type no run file can hold ({e})", "use numbers and text") from e
    finally:
        strip_caches(kind)


def open_data(recipe: Recipe, split: Split, seed: int) -> Given:
    """The samples of a split. `seed` is the run's: every split is made from the same random numbers, on every rank and at every
    start, so that a recipe may cut one data set into parts by chance.
    """
    seed_all(derive(seed, DATA))
    return recipe.data(split)
