"""Any causal language model of Hugging Face's transformers on text files, cut into rows of equal length."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from harness.data.feed import Table
from harness.data.open_dataset import is_table
from harness.data.packing import PackedRows
from harness.recipes.base import Split, Sum
from harness.recipes.documents import FIELD, LINES, read_documents
from harness.recipes.hf_model import HuggingFaceModel
from harness.recipes.preview import token_preview
from harness.recipes.text import Budget, next_token_loss, packed_loss, text_table


@dataclass(frozen=True)
class CausalLM(HuggingFaceModel):
    """Next-token cross-entropy, summed over the tokens that are no padding."""

    files: str | None = None
    """A folder of text files, one file, .parquet files or a folder of save_to_disk. Unset: the modules at the top of Python's
    standard library."""
    suffix: str = ".py"
    """Only files with this ending are read from a folder."""
    max_bytes: int = 4_000_000
    """Reading stops here, of all files together; a run says so."""
    field: str | None = None
    """Each line of a .jsonl is a document, whose text (in .parquet files and folders of save_to_disk: or token ids) has this name.
    Unset: `text`."""
    packing: Literal["none", "best_fit"] = "none"
    """best_fit: several documents (files, or lines of a .jsonl) in a row of `context` tokens, none of which sees another."""

    def data(self, split: Split) -> Table | PackedRows:
        """Columns tokens int32 [n, context + 1] and length int64 [n], the number of true tokens in it. Documents: PackedRows."""
        words = self._tokenizer()
        if self._in_documents():
            field, end = self.field or FIELD, None if words is None else words.eos_token_id

            def encode(texts: list[str]) -> list[list[int]]:
                return [ids if end is None else [*ids, end] for ids in _encode(texts, words)]

            budget = Budget(self.max_bytes)
            documents = read_documents(self.files, self.suffix, field, split, budget, self.context, encode)
            self._check_ids(documents.ids)
            return PackedRows(documents, self.context, pack=self.packing == "best_fit", about=budget.summary())

        def ids(text: bytes) -> NDArray[np.int32]:
            found = _ids(text, words)
            self._check_ids(found)
            return found

        return text_table(self.files, self.suffix, split, self.max_bytes, self.context, ids)

    def _in_documents(self) -> bool:
        if self.field is not None or self.packing != "none":
            return True
        return self.files is not None and (is_table(self.files) or LINES in (self.suffix, Path(self.files).suffix))

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Sum:
        """Cross-entropy in nats. Padding comes last, where causal attention does not see it."""
        return packed_loss(model, batch) if "position" in batch else next_token_loss(model, batch)

    def preview(self, sample: dict[str, Tensor]) -> str:
        """The sample's text."""
        return token_preview(sample, self._tokenizer())


def _ids(text: bytes, words: Any) -> NDArray[np.int32]:
    """Token ids of a file; `words` None: its bytes."""
    if words is None:
        return np.frombuffer(text, np.uint8).astype(np.int32)
    return np.asarray(words(text.decode(errors="replace"), verbose=False)["input_ids"], np.int32)


def _encode(texts: list[str], words: Any) -> list[list[int]]:
    """Token ids of documents, without special tokens; `words` None: their bytes."""
    if words is None:
        return [list(text.encode()) for text in texts]
    found: list[list[int]] = words(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return found
