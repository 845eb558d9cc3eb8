"""The recipe that stands for a script with its own model, data and loop, for checkpoints and reports."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import nn

from harness.config.errors import UserError
from harness.data.feed import Data
from harness.data.workers import Collate
from harness.recipes.base import Recipe, Split, Sum


@dataclass(frozen=True)
class Script(Recipe):
    """A script's training samples, how they become batches, and by how many worker processes."""

    samples: Data
    join: Collate
    workers: int

    def model(self) -> nn.Module:
        """Not called: the script has the model."""
        raise UserError("recipe.use", "is a script, which builds its own model", "start the script")

    def data(self, split: Split) -> Data | None:
        """The training samples; what is validated the script knows."""
        return self.samples if split == "train" else None

    def loss(self, model: nn.Module, batch: Any) -> Sum:
        """Not called: the script computes its loss."""
        raise UserError("recipe.use", "is a script, which computes its own loss", "start the script")

    def items_per_sample(self) -> float | None:
        """Unknown."""
        return None

    def collate(self, samples: list[Any]) -> Any:
        """A batch, by the collate_fn of the script's loader."""
        return self.join(samples)


@final
@dataclass(frozen=True)
class TokenScript(Script):
    """A script whose loss counts tokens."""

    item: ClassVar[str] = "token"
