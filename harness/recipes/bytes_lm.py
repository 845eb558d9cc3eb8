"""A byte-level GPT on any text files; by default on the Python standard library's own source, so it runs offline."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from harness.config.errors import UserError
from harness.config.schema import Below1
from harness.data.feed import Table
from harness.recipes.base import Recipe, Split, Sum
from harness.recipes.byte_tokenizer import write_byte_tokenizer
from harness.recipes.preview import shortened
from harness.recipes.sample_random import depth_rate, survival
from harness.recipes.text import next_tokens, text_table, token_loss

VOCABULARY = 256


@dataclass(frozen=True)
class BytesLM(Recipe):
    """Pre-norm GPT: learned positions, causal attention (torch's SDPA), tied embedding, no biases, no dropout by default."""

    item: ClassVar[str] = "token"

    files: str | None = None
    """A folder of text files, or one file. Unset: the modules at the top of the Python standard library."""
    suffix: str = ".py"
    """Only files with this ending are read from a folder."""
    max_bytes: int = 4_000_000
    """Reading stops here, of all files together; a run says so."""
    context: int = 128
    """Bytes that one sample predicts."""
    width: int = 128
    """Width of the residual stream."""
    depth: int = 4
    """Number of blocks."""
    heads: int = 4
    """Attention heads; they divide the width."""
    dropout: float = 0.0
    """Share dropped from each block's output."""
    label_smoothing: Below1 = 0.0
    """Share of the target spread over all bytes (Szegedy et al. 2016, 1512.00567), in training only."""
    stochastic_depth: Below1 = 0.0
    """How often the last branch is left out of a training sample; those before it less often (Huang et al. 2016)."""

    @property
    def augments(self) -> bool:
        """Whether branches are left out by each sample's key."""
        return self.stochastic_depth > 0

    def model(self) -> nn.Module:
        """Token ids int64 [n, t] -> logits [n, t, 256]."""
        if self.width % self.heads:
            raise UserError("recipe.heads", f"{self.heads} does not divide width {self.width}", "choose one that does")
        return Gpt(self)

    def data(self, split: Split) -> Table:
        """Columns tokens uint8 [n, context + 1] and length int64 [n], the number of true bytes in the row."""
        return text_table(self.files, self.suffix, split, self.max_bytes, self.context, lambda text: np.frombuffer(text, np.uint8))

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Sum:
        """Cross-entropy in nats, summed over the bytes that are not padding."""
        tokens, target, count = next_tokens(batch)
        drops = self.stochastic_depth and model.training
        logits = model(tokens, batch["key"]) if drops else model(tokens)
        return token_loss(logits, target, count, self.label_smoothing if model.training else 0.0)

    def metrics(self, model: nn.Module, batch: Any) -> dict[str, Sum]:
        """Loss in nats per byte, and the same in bits."""
        total, count = self.loss(model, batch)
        return {"loss": (total, count), "bits_per_byte": (total / math.log(2), count)}

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """The transformer blocks."""
        return [m for m in model.modules() if isinstance(m, Block)]

    def hugging_face(self, weights: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """A GPT2LMHeadModel."""
        settings = {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "vocab_size": VOCABULARY,
            "n_positions": self.context,
            "n_embd": self.width,
            "n_layer": self.depth,
            "n_head": self.heads,
            "activation_function": "gelu",
            "layer_norm_epsilon": 1e-5,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": None,
        }
        return settings, dict(_gpt2(self, weights))

    def hugging_face_files(self, out: Path) -> None:
        """A tokenizer to which each byte is a token."""
        write_byte_tokenizer(out)

    def preview(self, sample: dict[str, Tensor]) -> str:
        """The text."""
        return shortened(bytes(sample["tokens"][: int(sample["length"])].tolist()).decode(errors="replace"))

    def items_per_sample(self) -> float:
        """Bytes predicted in a row, padding included."""
        return float(self.context)

    def uniform_loss(self) -> float:
        """Every byte alike."""
        return math.log(VOCABULARY)

    def flops_per_item(self) -> float:
        """Training FLOPs per token, 6N + 12 L t d (Chowdhery et al. 2022, 2204.02311, appendix B); attention counted in full."""
        weights = VOCABULARY * self.width + 12 * self.depth * self.width**2
        return 6.0 * weights + 12.0 * self.depth * self.context * self.width


def _gpt2(knobs: BytesLM, weights: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The weights by the names of transformers' GPT-2, whose linear layers are stored transposed and have biases: here zeros."""
    yield "transformer.wte.weight", weights["token.weight"]
    yield "transformer.wpe.weight", weights["position"]
    linear = {"qkv": "attn.c_attn", "out": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"}
    norms = {"norm1": "ln_1", "norm2": "ln_2"}
    for block in range(knobs.depth):
        for ours, theirs in linear.items():
            weight = weights[f"blocks.{block}.{ours}.weight"].T
            yield f"transformer.h.{block}.{theirs}.weight", weight
            yield f"transformer.h.{block}.{theirs}.bias", torch.zeros(weight.shape[1])
        for ours, theirs in norms.items():
            weight = weights[f"blocks.{block}.{ours}.weight"]
            yield f"transformer.h.{block}.{theirs}.weight", weight
            yield f"transformer.h.{block}.{theirs}.bias", torch.zeros_like(weight)
    yield "transformer.ln_f.weight", weights["norm.weight"]
    yield "transformer.ln_f.bias", torch.zeros_like(weights["norm.weight"])


class Block(nn.Module):
    """Attention and a 4x feed-forward layer, each on a normalised input and added to the stream. [n, t, d] -> [n, t, d]."""

    def __init__(self, knobs: BytesLM, number: int) -> None:
        super().__init__()
        self.heads = knobs.heads
        self.first = 2 * number
        rates = [depth_rate(self.first + branch, 2 * knobs.depth, knobs.stochastic_depth) for branch in range(2)]
        self.rates = rates if knobs.stochastic_depth else []
        self.norm1, self.norm2 = nn.LayerNorm(knobs.width, bias=False), nn.LayerNorm(knobs.width, bias=False)
        self.qkv = nn.Linear(knobs.width, 3 * knobs.width, bias=False)
        self.out = nn.Linear(knobs.width, knobs.width, bias=False)
        self.up = nn.Linear(knobs.width, 4 * knobs.width, bias=False)
        self.down = nn.Linear(4 * knobs.width, knobs.width, bias=False)
        self.dropout = nn.Dropout(knobs.dropout)

    def forward(self, x: Tensor, key: Tensor | None = None) -> Tensor:
        """One block. With `key` int64 [n] each branch is left out of samples at its rate (stochastic depth)."""
        n, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        mixed = fn.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self._kept(self.dropout(self.out(mixed.transpose(1, 2).reshape(n, t, d))), 0, key)
        return x + self._kept(self.dropout(self.down(fn.gelu(self.up(self.norm2(x))))), 1, key)

    def _kept(self, branch: Tensor, number: int, key: Tensor | None) -> Tensor:
        if key is None or not self.rates:
            return branch
        return branch * survival(key, self.first + number, self.rates[number]).to(branch.dtype).view(-1, 1, 1)


class Gpt(nn.Module):
    """Weights start at N(0, 0.02), those into the stream at 0.02 / sqrt(2 depth) (Radford et al. 2019, GPT-2)."""

    def __init__(self, knobs: BytesLM) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, knobs.width)
        self.position = nn.Parameter(torch.empty(knobs.context, knobs.width))
        self.blocks = nn.ModuleList(Block(knobs, number) for number in range(knobs.depth))
        self.norm = nn.LayerNorm(knobs.width, bias=False)
        for name, weight in self.named_parameters():
            into_stream = name.endswith(("out.weight", "down.weight"))
            if weight.ndim > 1:
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * knobs.depth) if into_stream else 0.02)

    def forward(self, tokens: Tensor, key: Tensor | None = None) -> Tensor:
        """Ids int64 [n, t] -> logits [n, t, 256]; `key` int64 [n] of the samples where branches are left out by it."""
        x = self.token(tokens) + self.position[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, key)
        return fn.linear(self.norm(x), self.token.weight)
