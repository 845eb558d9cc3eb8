"""What checkpoints and reports ask of a recipe, answered for a script that owns its model, its data and its loop."""

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
        """The script has it."""
        raise UserError("recipe.use", "is a script, which makes its own model", "start the script")

    def data(self, split: Split) -> Data | None:
        """The training samples; what is validated the script knows."""
        return self.samples if split == "train" else None

    def loss(self, model: nn.Module, batch: Any) -> Sum:
        """The script computes it."""
        raise UserError("recipe.use", "is a script, which computes its own loss", "start the script")

    def items_per_sample(self) -> float | None:
        """Nobody has said."""
        return None

    def collate(self, samples: list[Any]) -> Any:
        """As the script's loader does."""
        return self.join(samples)


@final
@dataclass(frozen=True)
class TokenScript(Script):
    """A script whose loss counts tokens."""

    item: ClassVar[str] = "token"
