"""Small image classifiers of our own, and BatchNorm over groups of fixed size for any model."""

from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from harness.config.errors import UserError
from harness.recipes.image_files import Shape
from harness.recipes.sample_random import depth_rate, survival

Norm = Literal["batch", "group", "none"]
BLOCKS = {"resnet8": 1, "resnet14": 2, "resnet20": 3}
"""Blocks per stage, n in He et al.'s 6n + 2 layers."""
CHANNELS_PER_GROUP = 8


@final
class GhostBatchNorm(nn.Module):
    """Applies a BatchNorm to groups of `samples` samples, one after the other, whatever the micro-batch is.

    So the n that BatchNorm's statistics see, which is part of the objective (Goyal et al. 2017, 1706.02677, section 2.3),
    belongs to the recipe and not to the layout (Hoffer et al. 2017, 1705.08741: ghost batch normalization). The running
    statistics move once per group. The last group may be smaller; where it has one value per channel there is no variance,
    and the running statistics normalise it.
    """

    def __init__(self, norm: nn.Module, samples: int) -> None:
        super().__init__()
        self.norm, self.samples = norm, samples

    def forward(self, x: Tensor) -> Tensor:
        """x [n, c, ...] -> the same shape."""
        if not self.training:
            out: Tensor = self.norm(x)
            return out
        return torch.cat([self._group(part) for part in torch.split(x, self.samples)])

    def _group(self, x: Tensor) -> Tensor:
        self.norm.train(x.numel() > x.shape[1])
        out: Tensor = self.norm(x)
        self.norm.train()
        return out


def use_ghosts(model: nn.Module, samples: int) -> nn.Module:
    """Put every BatchNorm in `model` behind a GhostBatchNorm of `samples`, in place. Returns the model."""
    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            model.register_module(name, GhostBatchNorm(child, samples))
        else:
            use_ghosts(child, samples)
    return model


def norm_layer(kind: Norm, channels: int, *, axes: Literal[2, 4] = 4) -> nn.Module:
    """The norm of `channels` for inputs with `axes` axes; "group" is GroupNorm (Wu & He 2018, 1803.08494)."""
    if kind == "batch":
        return nn.BatchNorm2d(channels) if axes == 4 else nn.BatchNorm1d(channels)
    if kind == "none":
        return nn.Identity()
    if channels % CHANNELS_PER_GROUP:
        problem = f"is {channels}, no multiple of the {CHANNELS_PER_GROUP} channels of a GroupNorm group"
        raise UserError("recipe.width", problem, "choose one that is, or another recipe.norm")
    return nn.GroupNorm(channels // CHANNELS_PER_GROUP, channels)


@final
class Block(nn.Module):
    """Two 3x3 convolutions added to the input, which is subsampled and padded with zero channels where the shape changes.

    The branch begins at zero: the scale of its last norm does (Goyal et al. 2017, section 5.1), or without norms the last
    convolution (Zhang et al. 2019, 1901.09321).
    """

    def __init__(self, before: int, after: int, stride: int, norm: Norm, *, number: int = 0, drop: float = 0.0) -> None:
        super().__init__()
        self.number, self.drop = number, drop
        bias = norm == "none"
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=bias)
        self.norm1 = norm_layer(norm, after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=bias)
        self.norm2 = norm_layer(norm, after)
        self.stride, self.new = stride, after - before
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        last = self.conv2 if norm == "none" else self.norm2
        nn.init.zeros_(last.get_parameter("weight"))

    def forward(self, x: Tensor, key: Tensor | None = None) -> Tensor:
        """[n, before, h, w] -> [n, after, h / stride, w / stride], rounded up.

        With `key` int64 [n] the branch is left out of samples at the rate `drop` (stochastic depth).
        """
        branch = self.norm2(self.conv2(fn.relu(self.norm1(self.conv1(x)))))
        if key is not None and self.drop:
            branch = branch * survival(key, self.number, self.drop).to(branch.dtype).view(-1, 1, 1, 1)
        shortcut = fn.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new))
        return fn.relu(shortcut + branch)


@final
class ResNet(nn.Sequential):
    """Layers one after another, of which the blocks also take each sample's `key` int64 [n], where one is given."""

    def forward(self, x: Tensor, key: Tensor | None = None) -> Tensor:
        """[n, c, h, w] -> logits [n, classes]."""
        for layer in self:
            x = layer(x, key) if isinstance(layer, Block) else layer(x)
        return x


def resnet(shape: Shape, name: str, *, width: int, norm: Norm, dropout: float, depth_drop: float = 0.0) -> nn.Module:
    """He et al. 2016, 1512.03385, section 4.2: three stages of `width`, 2 and 4 times it; shortcuts without weights.

    [n, c, h, w] -> logits [n, classes]. `name` is a key of BLOCKS; stochastic depth leaves out the last block at `depth_drop`.
    """
    stem = nn.Conv2d(shape.channels, width, 3, padding=1, bias=norm == "none")
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    layers: list[nn.Module] = [stem, norm_layer(norm, width), nn.ReLU()]
    channels = width
    per_stage = BLOCKS[name]
    for number in range(3 * per_stage):
        stage, within = divmod(number, per_stage)
        stride = 2 if stage and not within else 1
        drop = depth_rate(number, 3 * per_stage, depth_drop)
        layers.append(Block(channels, width << stage, stride, norm, number=number, drop=drop))
        channels = width << stage
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout)]
    return ResNet(*layers, *pool, nn.Linear(channels, shape.classes))


def mlp(shape: Shape, *, width: int, norm: Norm, dropout: float) -> nn.Module:
    """Two hidden layers of `width` units. [n, c, h, w] -> logits [n, classes]."""
    layers: list[nn.Module] = [nn.Flatten()]
    for before in (shape.channels * shape.height * shape.width, width):
        layers += [nn.Linear(before, width), norm_layer(norm, width, axes=2), nn.ReLU()]
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(width, shape.classes))
