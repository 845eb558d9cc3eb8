"""Any causal language model of Hugging Face's transformers on text files, cut into rows of equal length."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from harness.config.errors import UserError
from harness.data.feed import Table
from harness.recipes.base import Split, Sum
from harness.recipes.hf_model import HuggingFaceModel
from harness.recipes.preview import token_preview
from harness.recipes.text import next_token_loss, text_table


@dataclass(frozen=True)
class CausalLM(HuggingFaceModel):
    """Next-token cross-entropy, summed over the tokens that are no padding."""

    files: str | None = None
    """A folder of text files, or one file. Unset: the modules at the top of the Python standard library."""
    suffix: str = ".py"
    """Only files with this ending are read from a folder."""
    max_bytes: int = 4_000_000
    """Reading stops here."""

    def data(self, split: Split) -> Table:
        """Columns tokens int32 [n, context + 1] and length int64 [n], the number of true tokens in the row."""
        words, vocabulary = self._tokenizer(), self._config().get_text_config().vocab_size

        def ids(text: bytes) -> NDArray[np.int32]:
            found = _ids(text, words)
            if len(found) and found.max() >= vocabulary:
                at = f"gives the token {found.max()}, and the model's vocabulary has {vocabulary}"
                raise UserError("recipe.tokenizer", at, "give the folder of the model's own tokenizer")
            return found

        return text_table(self.files, self.suffix, split, self.max_bytes, self.context, ids)

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Sum:
        """Cross-entropy in nats. Padding comes last, where causal attention does not see it."""
        return next_token_loss(model, batch)

    def preview(self, sample: dict[str, Tensor]) -> str:
        """The sample's text."""
        return token_preview(sample, self._tokenizer())


def _ids(text: bytes, words: Any) -> NDArray[np.int32]:
    """Token ids of a file; `words` None: its bytes."""
    if words is None:
        return np.frombuffer(text, np.uint8).astype(np.int32)
    return np.asarray(words(text.decode(errors="replace"), verbose=False)["input_ids"], np.int32)
