"""The tokenizer of a model of bytes, as Hugging Face's loaders read it: each byte of the text is the token of its number."""

import json
from pathlib import Path
from typing import Any

BYTES = 256


def byte_tokenizer() -> dict[str, Any]:
    """tokenizer.json: byte-level BPE (Radford et al. 2019, GPT-2) without merges, so that a token is a byte."""
    pieces = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": pieces,
        "post_processor": None,
        "decoder": pieces,
        "model": {"type": "BPE", "vocab": {_letter(byte): byte for byte in range(BYTES)}, "merges": []},
    }


def write_byte_tokenizer(folder: Path) -> None:
    """Write it beside a model's weights."""
    (folder / "tokenizer.json").write_text(json.dumps(byte_tokenizer(), indent=1))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=1))


def _letter(byte: int) -> str:
    """The character that stands for a byte in GPT-2's vocabulary: itself where it prints, else one from U+0100 on, in order."""
    if _prints(byte):
        return chr(byte)
    return chr(BYTES + sum(not _prints(earlier) for earlier in range(byte)))


def _prints(byte: int) -> bool:
    return 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or 0xAE <= byte <= 0xFF
