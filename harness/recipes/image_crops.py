"""From an image file to a square tensor of bytes: what is cut out of it is chosen first, and no more than that is resized.

A large JPEG is decoded at a half, a quarter or an eighth where that still has twice the pixels that are needed.
"""

import math
import random
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate
from typing_extensions import override

SMALLEST_AREA = 0.08
"""Share of an image's area that a random crop has at least."""
RATIOS = 3 / 4, 4 / 3
"""Width to height of a random crop."""
TRIES = 10
EVALUATED = 224 / 256
"""Side of the square that is evaluated, as a share of the image's shorter side."""
SPARE = 2
"""Pixels that are decoded for one that is needed, along a side, at least."""
Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


class Crop(ABC):
    """How an opened image file becomes uint8 [3, size, size]."""

    @abstractmethod
    def __call__(self, image: Image.Image) -> Tensor:
        """Decode and cut an image. Raises what pillow raises for a damaged one."""


@final
@dataclass(frozen=True)
class CentreSquare(Crop):
    """The largest centred square."""

    size: int

    @override
    def __call__(self, image: Image.Image) -> Tensor:
        square = ImageOps.fit(image.convert("RGB"), (self.size, self.size), Image.Resampling.BILINEAR)
        flat = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8)
        return flat.reshape(self.size, self.size, 3).permute(2, 0, 1).contiguous()


@final
@dataclass(frozen=True)
class RandomResizedCrop(Crop):
    """A rectangle of 8 % to 100 % of the area and a ratio of 3/4 to 4/3, at random (Szegedy et al. 2015, 1409.4842, section 6)."""

    size: int

    @override
    def __call__(self, image: Image.Image) -> Tensor:
        return _cut(image, random_box(*image.size), self.size)


@final
@dataclass(frozen=True)
class CentreCrop(Crop):
    """The centred `size` x `size` of the image whose shorter side is `size` * 256 / 224, as for training by RandomResizedCrop."""

    size: int

    @override
    def __call__(self, image: Image.Image) -> Tensor:
        width, height = image.size
        side = min(width, height) * EVALUATED
        left, top = (width - side) / 2, (height - side) / 2
        return _cut(image, (round(left), round(top), round(left + side), round(top + side)), self.size)


def random_box(width: int, height: int) -> Box:
    """Where a random crop lies, in whole pixels, drawn from Python's `random`; where none fits, the centre that nearly does.

    Area and logarithm of the ratio are uniform, as in torchvision's RandomResizedCrop.
    """
    for _ in range(TRIES):
        area = width * height * random.uniform(SMALLEST_AREA, 1)  # noqa: S311
        ratio = math.exp(random.uniform(*map(math.log, RATIOS)))  # noqa: S311
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)  # noqa: S311
            return left, top, left + w, top + h
    w, h = min(width, max(1, round(height * RATIOS[1]))), min(height, max(1, round(width / RATIOS[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _cut(image: Image.Image, box: Box, size: int) -> Tensor:
    """`box` of an image that is not decoded yet, resized with antialiasing: uint8 [3, size, size]."""
    whole = image.size
    needed = [SPARE * size * side / extent for side, extent in zip(whole, (box[2] - box[0], box[3] - box[1]), strict=True)]
    image.draft("RGB", (math.ceil(needed[0]), math.ceil(needed[1])))
    across, down = image.size[0] / whole[0], image.size[1] / whole[1]
    left, top, right, bottom = round(box[0] * across), round(box[1] * down), round(box[2] * across), round(box[3] * down)
    pixels: Any = image if image.mode == "RGB" else image.convert("RGB")
    cut = np.array(pixels.crop((left, top, max(right, left + 1), max(bottom, top + 1))))
    rows = torch.from_numpy(cut).permute(2, 0, 1)[None]
    return interpolate(rows, (size, size), mode="bilinear", antialias=True)[0].contiguous()
