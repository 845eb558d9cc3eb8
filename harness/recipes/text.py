"""Text for language models: files chosen for a split, cut into rows of equal length; and the loss of predicting each next token.

The loss counts tokens, not rows: the last row of a file is shorter, its padding is masked, and means are over true counts.
"""

import sysconfig
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from harness.config.errors import UserError
from harness.data.feed import Table
from harness.data.packing import UNCOUNTED
from harness.recipes.base import Split, Sum
from harness.recipes.document_masks import document_logits

MASKED = UNCOUNTED
TOKENS = (".bin", ".npy")
VALID_EVERY = 20
"""Every twentieth file is for validation; of a single file, every twentieth row."""


def text_paths(files: str | None, suffix: str) -> list[Path]:
    """The files of a recipe's text, in order. Raises UserError."""
    if files is None:
        root = Path(sysconfig.get_paths()["stdlib"])
        return sorted(root.glob("*.py"))
    path = Path(files)
    if path.suffix in TOKENS:
        raise UserError("recipe.files", f"{files!r} holds token ids, not text", "give it to the recipe tokens, as recipe.data")
    if path.is_file():
        return [path]
    found = sorted(p for p in path.rglob(f"*{suffix}") if p.is_file())
    if not found:
        ends = Counter(p.suffix for p in path.rglob("*") if p.suffix and p.is_file())
        remedy = f"set recipe.suffix: {ends.most_common(1)[0][0]}" if ends else "give a file or a folder of text"
        raise UserError("recipe.files", f"{files!r} holds no file that ends in {suffix!r}", remedy)
    return found


@dataclass
class Budget:
    """How many bytes of text may still be read, of `most` at first; `cut`: there were more."""

    most: int
    cut: bool = False

    def __post_init__(self) -> None:
        self.left = self.most

    def spend(self, size: int) -> bool:
        """Whether a text of so many bytes is read, all of it; none is after one that was not."""
        self.left -= size
        self.cut |= self.left < 0
        return self.left >= 0

    def read(self, path: Path) -> bytes:
        """A file, as far as there is room."""
        with path.open("rb") as file:
            text = file.read(self.left)
        self.left -= len(text)
        self.cut |= path.stat().st_size > len(text)
        return text

    def summary(self) -> str:
        """One line where not everything was read."""
        return f"the first {self.most:,} bytes of text are read, and there are more: see recipe.max_bytes" if self.cut else ""


def text_table(
    files: str | None, suffix: str, split: Split, most: int, context: int, ids: Callable[[bytes], NDArray[Any]]
) -> Table:
    """Columns tokens [n, context + 1] of the type of `ids`, and length int64 [n], the number of true tokens in the row.

    The first `most` bytes of the split's files are read. Raises UserError if they hold no text.
    """
    paths = text_paths(files, suffix)
    chosen = [p for i, p in enumerate(paths) if (i % VALID_EVERY == 0) == (split == "valid")] if len(paths) > 1 else paths
    rows, lengths, budget = [], [], Budget(most)
    for path in chosen:
        found = ids(budget.read(path))
        if len(found) < 2:
            continue
        starts = np.arange(0, len(found) - 1, context)
        padded = np.zeros(starts[-1] + context + 1, found.dtype)
        padded[: len(found)] = found
        rows.append(padded[starts[:, None] + np.arange(context + 1)])
        lengths.append(np.minimum(len(found) - starts, context + 1))
    if not rows:
        raise UserError("recipe.files", f"{files!r} holds no text for split {split}", "name a folder with more files")
    tokens, length = np.concatenate(rows), np.concatenate(lengths)
    if len(paths) == 1:
        held_out = np.arange(len(tokens)) % VALID_EVERY == 0
        keep = held_out if split == "valid" else ~held_out
        tokens, length = tokens[keep], length[keep]
    columns = {"tokens": torch.from_numpy(tokens), "length": torch.from_numpy(length).long()}
    return Table(columns, summary=budget.summary() if files else "")


def next_tokens(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens int64 [n, t], those that follow them with padding as MASKED [n, t], how many are no padding) of a row's t + 1."""
    tokens = batch["tokens"].long()
    real = torch.arange(1, tokens.shape[1], device=tokens.device) < batch["length"][:, None]
    return tokens[:, :-1], tokens[:, 1:].masked_fill(~real, MASKED), real.sum()


def next_token_loss(model: nn.Module, batch: dict[str, Tensor]) -> Sum:
    """The loss of predicting each next token of a `next_tokens` batch, for a model of transformers."""
    tokens, target, count = next_tokens(batch)
    return token_loss(model(input_ids=tokens, use_cache=False).logits.float(), target, count)


def document_loss(model: nn.Module, batch: dict[str, Tensor]) -> Sum:
    """The same where `position` int [n, t + 1] says where documents begin: of each as if it were alone, or were cut by the row."""
    tokens, target, _ = next_tokens(batch)
    target = target.masked_fill(batch["position"][:, 1:] == 0, MASKED)
    logits = document_logits(model, tokens, batch["position"][:, :-1]).float()
    return token_loss(logits, target, (target != MASKED).sum())


def packed_loss(model: nn.Module, batch: dict[str, Tensor]) -> Sum:
    """The same on a batch of PackedRows: the loss of its documents, each as if it were alone."""
    target = batch["target"].long()
    logits = document_logits(model, batch["tokens"].long(), batch["position"]).float()
    return token_loss(logits, target, (target != MASKED).sum())


def token_loss(logits: Tensor, target: Tensor, count: Tensor, label_smoothing: float = 0.0) -> Sum:
    """Cross-entropy in nats of logits [n, t, v], summed over the tokens that are not MASKED; their count."""
    flat, wanted = logits.flatten(0, 1), target.flatten()
    return cross_entropy(flat, wanted, ignore_index=MASKED, reduction="sum", label_smoothing=label_smoothing), count
