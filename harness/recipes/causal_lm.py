"""Any causal language model of Hugging Face's transformers: from a local folder, or from its configuration with fresh weights.

Text is cut into tokens by the tokenizer of a local folder, or, without one, into bytes. Nothing is fetched from the network.
"""

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from harness.parts.data import Table
from harness.parts.recipe import Recipe, Split, Sum
from harness.parts.text import next_tokens, text_table, token_loss
from harness.plan.config import Count
from harness.plan.errors import UserError

BYTES = 256


@dataclass(frozen=True)
class CausalLM(Recipe):
    """Next-token cross-entropy, summed over the tokens that are no padding."""

    item: ClassVar[str] = "token"

    folder: str | None = None
    """A local folder with config.json, weights and tokenizer, as save_pretrained() writes it. Exclusive with kind."""
    kind: str | None = None
    """A configuration by its name in transformers, with fresh weights: gpt2, llama, qwen2, ..."""
    overrides: list[str] = ()  # type: ignore[assignment]
    """Settings of that configuration, as [n_layer=2, n_embd=64]; its vocabulary is the tokenizer's."""
    tokenizer: str | None = None
    """A local folder with a tokenizer. Unset: that of `folder`; with kind: bytes."""
    files: str | None = None
    """A folder of text files, or one file. Unset: the modules at the top of the Python standard library."""
    suffix: str = ".py"
    """Only files with this ending are read from a folder."""
    max_bytes: int = 4_000_000
    """Reading stops here."""
    context: Count = 128
    """Tokens that one sample predicts."""

    def model(self) -> nn.Module:
        """Ids int64 [n, t] -> an object with `logits` [n, t, vocabulary]."""
        from transformers import AutoModelForCausalLM

        config = self._config()
        if self.folder is not None:
            model: nn.Module = AutoModelForCausalLM.from_pretrained(
                self.folder, config=config, local_files_only=True, dtype=torch.float32, use_safetensors=True
            )
            return model
        fresh: nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        return fresh

    def data(self, split: Split) -> Table:
        """Columns tokens int32 [n, context + 1] and length int64 [n], the number of true tokens in the row."""
        return text_table(self.files, self.suffix, split, self.max_bytes, self.context, self._ids)

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Sum:
        """Cross-entropy in nats. Padding comes last, where causal attention does not see it."""
        tokens, target, count = next_tokens(batch)
        return token_loss(model(input_ids=tokens, use_cache=False).logits.float(), target, count)

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """The longest list of layers in the model."""
        lists = [list(m) for m in model.modules() if isinstance(m, nn.ModuleList)]
        return max(lists, key=len, default=[])

    def hugging_face(self, weights: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """As it came."""
        return self._config().to_dict(), weights

    def items_per_sample(self) -> float:
        """Tokens predicted in a row, padding included."""
        return float(self.context)

    def uniform_loss(self) -> float | None:
        """Every token alike; of trained weights nobody knows."""
        return math.log(self._config().vocab_size) if self.folder is None else None

    def _config(self) -> Any:
        """The model's configuration. Raises UserError."""
        if (self.folder is None) == (self.kind is None):
            raise UserError("recipe.folder", f"is {self.folder!r} and recipe.kind {self.kind!r}", "give exactly one of the two")
        try:
            from transformers import AutoConfig
        except ImportError as e:
            raise UserError("recipe.use", f"causal_lm needs transformers ({e})", "pip install 'widebatch[hf]'") from e
        settings = dict(_setting(text) for text in self.overrides)
        try:
            if self.folder is not None:
                return AutoConfig.from_pretrained(self.folder, local_files_only=True, **settings)
            words = self._tokenizer()
            sized = (
                {"vocab_size": BYTES, "bos_token_id": None, "eos_token_id": None} if words is None else {"vocab_size": len(words)}
            )
            return AutoConfig.for_model(self.kind, **(sized | settings))
        except (OSError, ValueError) as e:
            setting, value = ("folder", self.folder) if self.folder is not None else ("kind", self.kind)
            raise UserError(f"recipe.{setting}", f"{value!r}: {str(e).splitlines()[0]}", "see the recipe's docstring") from e

    def _tokenizer(self) -> Any:
        return _tokenizer(self.tokenizer or self.folder)

    def _ids(self, text: bytes) -> NDArray[np.int32]:
        """Token ids of a file."""
        words = self._tokenizer()
        if words is None:
            return np.frombuffer(text, np.uint8).astype(np.int32)
        return np.asarray(words(text.decode(errors="replace"), verbose=False)["input_ids"], np.int32)


@cache
def _tokenizer(folder: str | None) -> Any:
    """The tokenizer of a local folder, or None for bytes. Raises UserError."""
    if folder is None:
        return None
    if not Path(folder).is_dir():
        raise UserError("recipe.tokenizer", f"{folder!r} is no folder", "give one with a tokenizer, or leave it out")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as e:
        at = f"{folder!r} holds no tokenizer: {str(e).splitlines()[0]}"
        raise UserError("recipe.tokenizer", at, "give the folder of one") from e


def _setting(text: str) -> tuple[str, int | float | bool | str]:
    """`n_layer=2` -> ("n_layer", 2). Raises UserError."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise UserError("recipe.overrides", f"{text!r} is no NAME=VALUE", "write [n_layer=2, n_embd=64]")
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, {"true": True, "false": False}.get(value, value)
