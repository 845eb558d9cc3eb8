"""LoRA by Hugging Face's peft: adapters put into a model, merged into its weights, and written as peft reads them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from harness.config.errors import UserError

ALL = "all-linear"
"""peft's word for every linear layer but the head."""


@final
@dataclass(frozen=True)
class Lora:
    """What the adapters are: rank, alpha, dropout, the modules that get them (none named: ALL), and the base's folder."""

    r: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]
    base: str | None


def library() -> Any:
    """Hugging Face's peft. Raises UserError if it is not installed."""
    try:
        import peft
    except ImportError as e:
        raise UserError("recipe.lora_r", f"needs peft ({e})", "pip install 'widebatch[lora]'") from e
    return peft


def with_lora(model: nn.Module, lora: Lora) -> nn.Module:
    """The model with adapters, which alone are trained. Raises UserError if no module matches."""
    peft = library()
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets) or ALL,
        base_model_name_or_path=lora.base,
    )
    try:
        adapted: nn.Module = peft.get_peft_model(model, config)
    except ValueError as e:
        at = f"is {list(lora.targets)}, which match no module of {type(model).__name__}"
        raise UserError("recipe.lora_targets", at, "give the last parts of module names, such as q_proj, or leave it out") from e
    return adapted


def merged(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the model alone, each with its adapter added; tied ones once. `model` is one of `with_lora`."""
    _take(model, weights)
    plain = model.merge_and_unload()  # type: ignore[operator]
    return {name: p.detach() for name, p in plain.named_parameters()}


def write_adapter(model: nn.Module, weights: dict[str, Tensor], out: Path) -> None:
    """adapter_config.json and adapter_model.safetensors in the folder `out`."""
    _take(model, weights)
    model.save_pretrained(str(out), safe_serialization=True)  # type: ignore[operator]


def _take(model: nn.Module, weights: dict[str, Tensor]) -> None:
    held = dict(model.named_parameters())
    with torch.no_grad():
        for name, found in weights.items():
            if name in held:
                held[name].copy_(found)
