"""Handwritten digits (scikit-learn's 1,797 images of 8x8) with a small convolutional net. Trains in seconds on a CPU."""

import math
from dataclasses import dataclass
from importlib.metadata import distribution
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from harness.config.schema import Below1
from harness.data.feed import Table
from harness.recipes.base import Recipe, Split, Sum

VALID_EVERY = 5
"""Every fifth image is for validation: 1,437 to train, 360 to validate."""


@dataclass(frozen=True)
class Digits(Recipe):
    """Two convolutions and a linear layer; no BatchNorm, so that losses are the same on every layout of GPUs."""

    width: int = 16
    """Channels of the first convolution."""
    dropout: float = 0.0
    """Share of features dropped before the last layer."""
    label_smoothing: Below1 = 0.0
    """Share of the target spread over all classes (Szegedy et al. 2016, 1512.00567)."""

    def model(self) -> nn.Module:
        """float [n, 1, 8, 8] -> logits [n, 10]."""
        return nn.Sequential(
            nn.Conv2d(1, self.width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(self.width, 2 * self.width, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(self.dropout),
            nn.Linear(2 * self.width * 16, 10),
        )

    def data(self, split: Split) -> Table:
        """Columns image float [n, 1, 8, 8] in [-1, 1] and label int64 [n]."""
        # importing scikit-learn takes a CPU second
        file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
        raw = torch.from_numpy(np.loadtxt(str(file), np.float32, delimiter=","))
        image, label = raw[:, :-1].reshape(-1, 1, 8, 8) / 8 - 1, raw[:, -1].long()
        held_out = torch.arange(len(label)) % VALID_EVERY == 0
        rows = held_out if split == "valid" else ~held_out
        return Table({"image": image[rows], "label": label[rows]})

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Sum:
        """Cross-entropy with label smoothing, summed over images."""
        logits, label = model(batch["image"]), batch["label"]
        return cross_entropy(logits, label, label_smoothing=self.label_smoothing, reduction="sum"), len(label)

    def examples(self, model: nn.Module, batch: dict[str, Tensor]) -> list[dict[str, Any]]:
        """The first eight images, what they are and what the model takes them for."""
        guess = model(batch["image"][:8]).argmax(-1)
        shown = zip(batch["image"], batch["label"], guess, strict=False)
        return [{"image": (image.cpu() + 1) / 2, "label": int(label), "guess": int(g)} for image, label, g in shown]

    def uniform_loss(self) -> float:
        """All ten classes equally likely."""
        return math.log(10)

    def flops_per_item(self) -> float:
        """Two per product; three products per weight use, in the first layer two, as its input needs no gradient."""
        first, second, last = 64 * 9 * self.width, 16 * 9 * self.width * 2 * self.width, 2 * self.width * 16 * 10
        return 2.0 * (2 * first + 3 * second + 3 * last)

    def metrics(self, model: nn.Module, batch: Any) -> dict[str, Sum]:
        """Loss without smoothing, and accuracy."""
        logits, label = model(batch["image"]), batch["label"]
        right = 100.0 * (logits.argmax(-1) == label).sum()
        return {
            "loss": (cross_entropy(logits, label, reduction="sum"), len(label)),
            "accuracy_pct": (right, len(label)),
        }
