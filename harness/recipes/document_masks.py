"""Rows of several documents through a model of transformers, in which none sees another: how, by the model's attention.

`sdpa` and `eager` are given a block-diagonal mask: made here, as transformers' own way from position ids to a mask waits for the
device in each pass. Flash attention takes the rows as one sequence with the documents' ends, for its kernels of variable length.
What is left (flex attention, layers with windows) is given position ids that restart, of which transformers makes a mask.
"""

import inspect
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from harness.config.errors import UserError
from harness.recipes.pretrained import transformers_model

PROBE = 16
"""Tokens of which it is seen whether a model keeps documents apart."""
LEAK, LEAK_HALF = 1e-3, 0.1
"""Of what a change of a document does to the one after it in the same text, it may do so much to another document: rounding alone.
The second is for types of 16 bits."""


@dataclass
class _Form:
    """How a model is given documents, and whether it was seen to keep them apart."""

    how: Literal["mask", "additive", "flash", "position"]
    seen: bool = False


_FORMS: "WeakKeyDictionary[nn.Module, _Form]" = WeakKeyDictionary()


def document_logits(model: nn.Module, tokens: Tensor, position: Tensor) -> Tensor:
    """Logits [n, t, vocabulary] of ids int64 [n, t]; a document begins where `position` (int [n, t]) is 0.

    The first time, in an evaluation, the model is looked at. Raises UserError if it lets documents see each other.
    """
    form = _FORMS.get(model)
    if form is None:
        form = _FORMS[model] = _Form(_how(model))
    if not (form.seen or model.training or torch.is_grad_enabled()):
        form.seen = True
        _check_apart(model, form, tokens)
    return _logits(model, form, tokens, position)


def block_diagonal(position: Tensor) -> Tensor:
    """Which places each place may see: bool [n, 1, t, t], those before it of its own document and itself."""
    document = (position == 0).cumsum(1)
    same = document[:, None, :, None] == document[:, None, None, :]
    return same & torch.ones(same.shape[-2:], dtype=torch.bool, device=position.device).tril()


def sequence_ends(position: Tensor) -> Tensor:
    """Where the documents of all rows begin, laid one after another, and the end: int32 [documents + 1]. Each row begins one.

    How many there are is asked of the device: this pass waits for it once, as kernels of variable length want it.
    """
    begins = (position == 0).clone()
    begins[:, 0] = True
    return nn.functional.pad(begins.flatten().nonzero()[:, 0], (0, 1), value=begins.numel()).int()


def _how(model: nn.Module) -> Literal["mask", "additive", "flash", "position"]:
    """Raises UserError for a model that takes no positions."""
    inner = transformers_model(model)
    if "position_ids" not in inspect.signature(inner.forward).parameters:
        at = f"{type(inner).__name__} takes no position ids, so documents in one row cannot be kept apart"
        raise UserError("recipe.use", at, "leave out packing and documents: masked, or choose another model")
    config = inner.config.get_text_config()
    settings, implementation = config.to_dict(), str(config._attn_implementation)
    layers = set(settings.get("layer_types") or ["full_attention"])
    windows = layers != {"full_attention"} or (settings.get("layer_types") is None and settings.get("sliding_window") is not None)
    if "flash" in implementation:
        return "flash"
    if windows or implementation not in ("sdpa", "eager"):
        return "position"
    return "mask" if implementation == "sdpa" else "additive"


def _logits(model: nn.Module, form: _Form, tokens: Tensor, position: Tensor) -> Tensor:
    given: dict[str, Any] = {"input_ids": tokens, "position_ids": position.long(), "use_cache": False}
    if form.how in ("mask", "additive"):
        allowed = block_diagonal(position)
        low = torch.finfo(torch.float32).min
        given["attention_mask"] = allowed if form.how == "mask" else torch.where(allowed, 0.0, low)
    elif form.how == "flash":
        given |= {name: part.reshape(1, -1) for name, part in given.items() if isinstance(part, Tensor)}
        ends, longest = sequence_ends(position), position.shape[1]
        given |= {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
    logits: Tensor = model(**given).logits
    return logits.reshape(*tokens.shape, -1)


def _check_apart(model: nn.Module, form: _Form, tokens: Tensor) -> None:
    """Change a document, and look at the next one's logits: apart they stay, as one text they do not; they are those that it has
    alone. Raises UserError.
    """
    inner = transformers_model(model)
    if _is_flex(inner) and tokens.device.type == "cpu" and any(p.requires_grad for p in inner.parameters()):
        at = "holds attn_implementation=flex_attention, for which torch has no backward on the CPU"
        raise UserError("recipe.overrides", at, "train on a GPU, or leave it out")
    row = tokens[:1, :PROBE]
    half = row.shape[1] // 2
    if half < 1:
        return
    other = row.clone()
    other[:, :half] = (row[:, :half] + 1) % inner.config.get_text_config().vocab_size
    whole = torch.arange(row.shape[1], device=row.device)[None]
    apart = torch.where(whole < half, whole, whole - half)
    changes = [_logits(model, form, row, p)[:, half:] - _logits(model, form, other, p)[:, half:] for p in (apart, whole)]
    moved, seen = (change.abs().max().item() for change in changes)
    limit = LEAK if changes[0].itemsize > 2 else LEAK_HALF
    if moved > seen * limit:
        at = f"{type(inner).__name__} lets documents in one row see each other"
        raise UserError("recipe.use", at, "leave out packing and documents: masked, or choose another model")
    packed, alone = _logits(model, form, row, apart)[:, half:], _logits(model, form, row[:, half:], apart[:, half:])
    off = (packed - alone).abs().max().item() / alone.abs().max().item()
    if not off <= limit:
        at = f"{type(inner).__name__} gives a document other logits in a row of several than alone (they differ by {off:.1%})"
        raise UserError("recipe.use", at, "leave out packing and documents: masked, or choose another attn_implementation")


def _is_flex(inner: Any) -> bool:
    return "flex" in str(inner.config.get_text_config()._attn_implementation)
