"""One line about a sample, for people who look for an odd one: values where there are few, else their range."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.data.batch_tree import open_up

FEW = 8
"""Numbers that are shown one by one."""
LONGEST = 80
"""Characters of a text that are shown."""


def preview(sample: Any) -> str:
    """The parts of a sample, by name where they have one."""
    if isinstance(sample, dict):
        return ", ".join(f"{name} {preview(part)}" for name, part in sample.items())
    if isinstance(sample, np.ndarray):
        return preview(torch.from_numpy(sample)) if sample.dtype.kind in "biuf" else f"{sample.dtype} {list(sample.shape)}"
    if isinstance(sample, Tensor):
        return _numbers(sample)
    opened = None if isinstance(sample, str | bytes) else open_up(sample)
    return shortened(str(sample)) if opened is None else ", ".join(map(preview, opened[0]))


def shortened(text: str) -> str:
    """The beginning of a text, in one line."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."


def _numbers(values: Tensor) -> str:
    if values.numel() <= FEW and values.ndim <= 1:
        return str(values.tolist()) if values.ndim else f"{values.item():g}"
    kind = f"{str(values.dtype).removeprefix('torch.')} {list(values.shape)}"
    if not values.numel():
        return kind
    wide = values.double()
    return f"{kind} from {wide.min().item():.4g} to {wide.max().item():.4g}, mean {wide.mean().item():.4g}"


def token_preview(sample: dict[str, Tensor], words: Any) -> str:
    """The text of a row of tokens by its tokenizer; its ids where there is none."""
    ids = sample["tokens"][: int(sample["length"])].tolist()
    return shortened(f"ids {ids}" if words is None else words.decode(ids))
