"""A recipe for tests whose data has bad samples: some that raise, one that ends its process, one that hangs."""

import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from harness.config.errors import UserError
from harness.data.feed import Data
from harness.recipes.base import Recipe, Split, Sum


class Numbered:
    """Samples by number: {"id", "x", "y"}, and what the recipe's knobs break."""

    def __init__(self, knobs: "Broken", split: Split) -> None:
        self.knobs, self.split = knobs, split

    def __len__(self) -> int:
        return self.knobs.size

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        k = self.knobs
        if number in (k.raises if self.split == "train" else k.raises_valid):
            raise ValueError(f"sample {number} is broken")
        if self.split == "train":
            if number == k.user_error:
                raise UserError("recipe.root", "the disk is not mounted", "mount it")
            if number == k.kills:
                os.kill(os.getpid(), signal.SIGKILL)
            if number == k.kills_once and not self._before():
                os.kill(os.getpid(), signal.SIGKILL)
            if number == k.hangs:
                (Path(k.log) / f"hung.{os.getpid()}").write_text(str(os.getpid()))
                (Path(k.log) / f"hung.{os.getpid()}").rename(Path(k.log) / "hung")
                threading.Event().wait()
        x = torch.full((4,), number / k.size)
        return {"id": torch.tensor(number), "x": x, "y": x.sum(0, keepdim=True) + 1}

    def _before(self) -> bool:
        """Whether this was asked for before, in any process."""
        mark = Path(self.knobs.log) / "once"
        known = mark.exists()
        mark.touch()
        return known


@dataclass(frozen=True)
class Broken(Recipe):
    """Linear regression; the ids of each pass in training are written down by rank."""

    log: str
    size: int = 48
    workers: int = 0
    raises: list[int] = ()  # type: ignore[assignment]
    raises_valid: list[int] = ()  # type: ignore[assignment]
    user_error: int = -1
    kills: int = -1
    kills_once: int = -1
    hangs: int = -1

    def model(self) -> nn.Module:
        """[n, 4] -> [n, 1]."""
        return nn.Linear(4, 1)

    def data(self, split: Split) -> Data:
        """Samples by number."""
        return Numbered(self, split)

    def loss(self, model: nn.Module, batch: Any) -> Sum:
        """Squared error."""
        if model.training and not batch["x"].is_meta:
            with (Path(self.log) / f"{os.environ.get('RANK', '0')}.ids").open("a") as f:
                f.write(" ".join(str(i) for i in batch["id"].tolist()) + "\n")
        return mse_loss(model(batch["x"]), batch["y"], reduction="sum"), len(batch["id"])
