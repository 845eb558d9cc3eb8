"""A causal language model of Hugging Face's transformers: of a local folder, or of its configuration with fresh weights; with LoRA.

Text is cut into tokens by the tokenizer of a local folder, or, without one, into bytes. Nothing is fetched from the network.
"""

import math
import shutil
from abc import ABC
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from msgspec import Meta
from numpy.typing import NDArray
from torch import Tensor, nn

from harness.config.errors import UserError
from harness.config.schema import Below1, Count, Positive
from harness.recipes.base import Recipe
from harness.recipes.byte_tokenizer import BYTES, write_byte_tokenizer
from harness.recipes.lora import Lora, merged, with_lora, write_adapter
from harness.recipes.pretrained import library, read_model, read_tokenizer

GENERATION = "generation_config.json"


@dataclass(frozen=True)
class HuggingFaceModel(Recipe, ABC):
    """The model and its tokenizer; a subclass has the data and the loss."""

    item: ClassVar[str] = "token"

    folder: str | None = None
    """A local folder with config.json, weights and tokenizer, as save_pretrained() writes it. Exclusive with kind."""
    kind: str | None = None
    """A configuration by its name in transformers, with fresh weights: gpt2, llama, qwen2, ..."""
    overrides: list[str] = ()  # type: ignore[assignment]
    """Settings of that configuration, as [n_layer=2, n_embd=64]; its vocabulary is the tokenizer's."""
    tokenizer: str | None = None
    """A local folder with a tokenizer, or `bytes`. Unset: that of `folder`; with kind: bytes."""
    context: Count = 128
    """Tokens that one sample predicts at most."""
    lora_r: Annotated[int, Meta(ge=0)] = 0
    """Rank of LoRA's adapters (Hu et al. 2021, 2106.09685), which alone are trained and saved. 0: train all weights."""
    lora_alpha: Positive | None = None
    """What the adapters' output is multiplied by, times 1 / lora_r. Unset: twice lora_r."""
    lora_dropout: Below1 = 0.0
    """Share of the adapters' input that is dropped in training."""
    lora_targets: list[str] = ()  # type: ignore[assignment]
    """Modules that get adapters, by the ends of their names: [q_proj, v_proj]. Unset: every linear layer but the head."""

    def model(self) -> nn.Module:
        """Ids int64 [n, t] -> an object with `logits` [n, t, vocabulary]."""
        config = self._config()
        if self.folder is not None and torch.get_default_device().type != "meta":  # not on the meta device: the weights are needed
            whole = read_model(self.folder, config)
        else:
            whole = library().AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        return with_lora(whole, self._lora()) if self.lora_r else whole

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """The longest list of layers in the model."""
        lists = [list(m) for m in model.modules() if isinstance(m, nn.ModuleList)]
        return max(lists, key=len, default=[])

    def hugging_face(self, weights: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The model in its own format; LoRA adapters are merged into the weights."""
        return self._config().to_dict(), merged(self.model(), weights) if self.lora_r else weights

    def hugging_face_files(self, out: Path) -> None:
        """The tokenizer, and how the model of `folder` generates text."""
        words = self._tokenizer()
        if words is None:
            write_byte_tokenizer(out)
        else:
            words.save_pretrained(out)
        if self.folder is not None and (Path(self.folder) / GENERATION).is_file():
            shutil.copy(Path(self.folder) / GENERATION, out / GENERATION)

    def adapter_files(self, weights: dict[str, Tensor], out: Path) -> None:
        """Write the adapters as peft reads them. Raises UserError."""
        if not self.lora_r:
            raise UserError("--adapter", "is given, but recipe.lora_r is 0: the run trains all weights", "leave it out")
        write_adapter(self.model(), weights, out)

    def items_per_sample(self) -> float:
        """Tokens predicted in a row, padding included."""
        return float(self.context)

    def uniform_loss(self) -> float | None:
        """All tokens equally likely; None (unknown) for trained weights."""
        return math.log(self._config().vocab_size) if self.folder is None else None

    def _lora(self) -> Lora:
        return Lora(self.lora_r, self.lora_alpha or 2.0 * self.lora_r, self.lora_dropout, tuple(self.lora_targets), self.folder)

    def _config(self) -> Any:
        """The model's configuration. Raises UserError."""
        if (self.folder is None) == (self.kind is None):
            raise UserError("recipe.folder", f"is {self.folder!r} and recipe.kind {self.kind!r}", "give exactly one of the two")
        configs = library().AutoConfig
        settings = dict(_setting(text) for text in self.overrides)
        try:
            if self.folder is not None:
                return configs.from_pretrained(self.folder, local_files_only=True, **settings)
            words = self._tokenizer()
            sized = self._sized() if words is None else {"vocab_size": len(words)}
            return configs.for_model(self.kind, **(sized | settings))
        except (OSError, ValueError) as e:
            setting, value = ("folder", self.folder) if self.folder is not None else ("kind", self.kind)
            raise UserError(f"recipe.{setting}", f"{value!r}: {str(e).splitlines()[0]}", "see the recipe's docstring") from e

    def _check_ids(self, ids: NDArray[np.int32]) -> None:
        """Raises UserError if the tokenizer gives ids past the model's vocabulary."""
        vocabulary = self._config().get_text_config().vocab_size
        if ids.size and ids.max() >= vocabulary:
            at = f"gives the token {ids.max()}, and the model's vocabulary has {vocabulary}"
            raise UserError("recipe.tokenizer", at, "give the folder of the model's own tokenizer")

    def _sized(self) -> dict[str, Any]:
        """Settings of a `kind` where there is no tokenizer: a byte is a token."""
        return {"vocab_size": BYTES, "bos_token_id": None, "eos_token_id": None}

    def _tokenizer(self) -> Any:
        """The tokenizer; None for bytes. Raises UserError."""
        if self.tokenizer == "bytes" or (self.tokenizer is None and self.folder is None):
            return None
        return read_tokenizer(self.tokenizer or self.folder or "", "tokenizer" if self.tokenizer else "folder")


def _setting(text: str) -> tuple[str, int | float | bool | str]:
    """`n_layer=2` -> ("n_layer", 2). Raises UserError."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise UserError("recipe.overrides", f"{text!r} is not NAME=VALUE", "write [n_layer=2, n_embd=64]")
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, {"true": True, "false": False}.get(value, value)
