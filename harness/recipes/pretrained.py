"""A local folder of Hugging Face's: weights from safetensors, and the tokenizer. What is missing is reported in one line."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from harness.config.errors import UserError

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def library() -> Any:
    """Hugging Face's transformers. Raises UserError if it is not installed."""
    try:
        import transformers
    except ImportError as e:
        raise UserError("recipe.use", f"this model needs transformers ({e})", "pip install 'widebatch[hf]'") from e
    return transformers


def transformers_model(model: nn.Module) -> Any:
    """The model of transformers' in what an engine, torch.compile or peft has made of it. Raises UserError if there is none."""
    kind: type[nn.Module] = library().PreTrainedModel
    found = next((part for part in model.modules() if isinstance(part, kind)), None)
    if found is None:
        raise UserError("recipe.use", f"{type(model).__name__} is not a model of transformers", "give one, as by recipe.kind")
    return found


def read_model(folder: str, config: Any) -> nn.Module:
    """The model of a folder with its weights in float32, whatever they are stored in. Raises UserError."""
    _check_weights(folder)
    options = {"local_files_only": True, "dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
    try:
        model, found = library().AutoModelForCausalLM.from_pretrained(folder, config=config, **options)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as e:
        lines = [line for line in str(e).splitlines() if line.strip()]
        at = f"the weights in {folder!r} cannot be read: {lines[0].strip() if lines else type(e).__name__}"
        raise UserError("recipe.folder", at, "give a whole folder, as save_pretrained() writes it") from e
    missing = sorted(found["missing_keys"])
    if missing:
        at = f"{folder!r} lacks {len(missing)} weights of {type(model).__name__}, such as {missing[0]}"
        raise UserError("recipe.folder", at, "give the folder of a whole causal language model")
    whole: nn.Module = model
    return whole


def _check_weights(folder: str) -> None:
    """Raises UserError if a folder has no safetensors."""
    path = Path(folder)
    if any((path / name).is_file() for name in WEIGHTS):
        return
    pickles = sorted(p.name for pattern in PICKLES for p in path.glob(pattern))
    if not pickles:
        raise UserError("recipe.folder", f"{folder!r} holds no {WEIGHTS[0]}", "give one that save_pretrained() wrote")
    code = f"from transformers import AutoModelForCausalLM as M; M.from_pretrained({folder!r}).save_pretrained('NEW')"
    at = f"{folder!r} holds {pickles[0]} and no {WEIGHTS[0]}: unpickling can run code, so it is not read"
    raise UserError("recipe.folder", at, f'convert it once, if you trust it: python -c "{code}"; copy its tokenizer too')


@cache
def read_tokenizer(folder: str, setting: str) -> Any:
    """The tokenizer of a local folder, which the recipe's `setting` names. Raises UserError."""
    library()  # what is missing from the environment is reported before what is missing from the folder
    if not Path(folder).is_dir():
        raise UserError(f"recipe.{setting}", f"{folder!r} is not a folder", "give one with a tokenizer, or leave it out")
    remedy = "give recipe.tokenizer: the folder of the model's tokenizer, or `bytes` for a model of bytes"
    tokenizers = library().AutoTokenizer
    try:
        words = tokenizers.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as e:
        lines = [line for line in str(e).splitlines() if line.strip()]
        why = f" that can be read ({lines[0].strip()})" if (Path(folder) / "tokenizer_config.json").is_file() and lines else ""
        raise UserError(f"recipe.{setting}", f"{folder!r} holds no tokenizer{why}", remedy) from e
    # transformers makes an empty tokenizer where the folder has none
    if not set(words.get_vocab()) - set(words.all_special_tokens):
        raise UserError(f"recipe.{setting}", f"{folder!r} holds no tokenizer", remedy)
    return words
