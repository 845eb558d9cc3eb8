"""Fine-tuning on conversations: a JSON lines file, the tokenizer's chat template, and the loss on what the assistant says."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from harness.config.errors import UserError
from harness.data.feed import Table
from harness.data.packing import Documents, PackedRows
from harness.recipes.base import Split, Sum
from harness.recipes.chat_rows import ChatRow, read_rows
from harness.recipes.hf_model import HuggingFaceModel
from harness.recipes.preview import token_preview
from harness.recipes.text import MASKED, VALID_EVERY, packed_loss, token_loss


@dataclass(frozen=True)
class Chat(HuggingFaceModel):
    """Next-token cross-entropy, summed over the tokens of the assistant's messages, their end included."""

    files: str | None = None
    """A file of JSON lines: {"messages": [...]}, or {"prompt": ..., "completion": ...}. Or .parquet files, or a folder of
    save_to_disk, with columns of these names."""
    valid_files: str | None = None
    """Another such file, for validation. Unset: every twentieth line of `files`."""
    too_long: Literal["refuse", "cut", "drop"] = "refuse"
    """What becomes of conversations of more than context + 1 tokens: the run is refused, they are cut at the end, or left out."""
    packing: Literal["none", "best_fit"] = "none"
    """best_fit: several conversations in a row of `context` tokens, none of which sees another; a sample is then such a row."""

    def data(self, split: Split) -> Table | PackedRows | None:
        """Columns tokens int32 and learn uint8 (1: to be learnt), both [n, context + 1]; padding comes last. Packed: PackedRows."""
        rows = list(self._fitting(self._chosen(split)))
        if not rows:
            if split == "valid":
                return None
            raise UserError("recipe.files", f"{self.files!r} has no line to train on", "give it some")
        if self.packing == "best_fit":
            documents = Documents.of([(row.line, row.ids, row.learn) for row in rows], "conversations")
            self._check_ids(documents.ids)
            return PackedRows(documents, self.context)
        tokens = np.zeros((len(rows), self.context + 1), np.int32)
        learn = np.zeros((len(rows), self.context + 1), np.uint8)
        for row, ids, flags in zip(rows, tokens, learn, strict=True):
            ids[: len(row.ids)] = row.ids
            flags[: len(row.ids)] = row.learn
        self._check_ids(tokens)
        return Table({"tokens": torch.from_numpy(tokens), "learn": torch.from_numpy(learn)})

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Sum:
        """Cross-entropy in nats. Padding comes last, where causal attention does not see it."""
        if "position" in batch:
            return packed_loss(model, batch)
        tokens, learn = batch["tokens"].long(), batch["learn"][:, 1:].bool()
        target = tokens[:, 1:].masked_fill(~learn, MASKED)
        return token_loss(model(input_ids=tokens[:, :-1], use_cache=False).logits.float(), target, learn.sum())

    def preview(self, sample: dict[str, Tensor]) -> str:
        """The text of a packed row; of others, their columns."""
        return token_preview(sample, self._tokenizer()) if "length" in sample else super().preview(sample)

    def _chosen(self, split: Split) -> Iterator[ChatRow]:
        """The conversations of a split. Raises UserError."""
        words: Any = self._tokenizer()
        if words is None:
            raise UserError("recipe.tokenizer", "is bytes, and chat needs a tokenizer", "give a local folder with one")
        if self.files is None:
            raise UserError("recipe.files", "is not given", "name a file of JSON lines")
        if split == "valid" and self.valid_files is not None:
            yield from read_rows(self.valid_files, words)
            return
        for number, row in enumerate(read_rows(self.files, words)):
            held_out = self.valid_files is None and number % VALID_EVERY == VALID_EVERY - 1
            if held_out == (split == "valid"):
                yield row

    def _fitting(self, rows: Iterator[ChatRow]) -> Iterator[ChatRow]:
        """Those of at most context + 1 tokens, as `too_long` says. Raises UserError."""
        most = self.context + 1
        for row in rows:
            if len(row.ids) <= most:
                yield row
            elif self.too_long == "refuse":
                remedy = f"set recipe.context: {len(row.ids) - 1} or more, or recipe.too_long: cut or drop"
                at = f"line {row.line} has {len(row.ids):,} tokens, and recipe.context {self.context} takes {most:,}"
                raise UserError("recipe.files", at, remedy)
            elif self.too_long == "cut" and any(row.learn[1:most]):
                yield ChatRow(row.line, row.ids[:most], row.learn[:most])
