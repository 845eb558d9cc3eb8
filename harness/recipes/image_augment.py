"""Augmentation on the device, from each sample's `key`: the same picture on every layout of GPUs."""

import torch
from torch import Tensor
from torch.nn import functional as fn

from harness.recipes.sample_random import uniform

ROW, COLUMN, MIRROR = range(1, 4)
"""Purposes of the random numbers; 4 and 5 are mixup's."""
PAD_SHARE = 8
"""Images move by up to 1/8 of their side."""


def augment(image: Tensor, key: Tensor, *, flip: bool) -> Tensor:
    """Shift each image [n, c, h, w] by up to 1/8 of its side, filled with 0 (black); with `flip`, mirror half of them.

    The crop of He et al. 2016, 1512.03385, section 4.2, done as one gather. `key` int64 [n].
    """
    n, _, height, width = image.shape
    up, left = height // PAD_SHARE, width // PAD_SHARE
    rows = torch.arange(height, device=key.device) + _below(key, ROW, 2 * up + 1)[:, None]
    columns = torch.arange(width, device=key.device).expand(n, width)
    if flip:
        columns = torch.where(_is_mirrored(key)[:, None], columns.flip(1), columns)
    columns = columns + _below(key, COLUMN, 2 * left + 1)[:, None]
    padded = fn.pad(image, (left, left, up, up))
    sample = torch.arange(n, device=key.device)[:, None, None]
    return padded.movedim(1, -1)[sample, rows[:, :, None], columns[:, None, :]].movedim(-1, 1).contiguous()


def mirrored(image: Tensor, key: Tensor) -> Tensor:
    """Half of the images [n, c, h, w] mirrored, chosen by `key` int64 [n]."""
    return torch.where(_is_mirrored(key)[:, None, None, None], image.flip(-1), image)


def _is_mirrored(key: Tensor) -> Tensor:
    return uniform(key, MIRROR) < 0.5


def _below(key: Tensor, purpose: int, bound: int) -> Tensor:
    """A whole number in [0, bound) per sample: int64 [n]."""
    return (uniform(key, purpose) * bound).long()
