"""Image classification: IDX files or a folder per class; a small ResNet of our own, or any model of timm."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from harness.config.errors import UserError, did_you_mean
from harness.config.schema import Below1, Count, NonNegative
from harness.data.feed import Data
from harness.recipes.base import Recipe, Split, Sum
from harness.recipes.image_augment import augment, mirrored
from harness.recipes.image_crops import CentreCrop, CentreSquare, RandomResizedCrop
from harness.recipes.image_files import Shape, Transform, open_images
from harness.recipes.mixup import mixed_loss
from harness.recipes.resnet import BLOCKS, Norm, mlp, resnet, use_ghosts

TIMM = "timm:"
RESNET_WIDTH, MLP_WIDTH = 16, 256


@dataclass(frozen=True)
class Images(Recipe):
    """Cross-entropy over classes. With BatchNorm, its n is a knob and the same on every layout of GPUs.

    Bytes stay bytes until the loss, which maps them to [-1, 1] in the type of the model's weights. `transform` is for subclasses.
    """

    root: str = "/usr/share/datasets/fashion-mnist"
    """Folder with IDX files named as MNIST's (train-images-idx3-ubyte[.gz], ...), or with train/CLASS/*.png|jpg and valid/."""
    size: Count | None = None
    """Side in pixels to which image folders are cut and resized. IDX files are taken as they are: leave it out."""
    net: str = "resnet8"
    """resnet8, resnet14, resnet20, mlp, or timm:NAME for a model of timm, from fresh weights."""
    width: Count | None = None
    """Channels of the ResNet's first stage, or hidden units of the mlp. Unset: 16, or 256. timm models have their own."""
    norm: Norm = "batch"
    """batch, group or none. timm models have their own: leave batch, which bears on the BatchNorms they have."""
    norm_samples: Annotated[int, Meta(ge=2)] = 32
    """Samples over which BatchNorm takes its statistics, whatever the micro-batch; choose a micro-batch that it divides."""
    dropout: Below1 = 0.0
    """Share of features dropped before the last layer."""
    augment: bool = True
    """Cut each training image as `crop` says, and mirror it as `flip` says, drawn again in every epoch."""
    crop: Literal["shift", "random_resized"] = "shift"
    """shift: move by up to 1/8 of the side. random_resized, for image folders: 8 % to 100 % of the area at a ratio of 3/4 to 4/3,
    as Goyal et al. 2017 (1706.02677); validation then cuts `size` out of the image resized to 8/7 of it (224 of 256)."""
    flip: bool = True
    """With augment: mirror half of the images, chosen again in every epoch. Not for digits or letters."""
    label_smoothing: Below1 = 0.0
    """Share of the target spread over all classes (Szegedy et al. 2016, 1512.00567)."""
    mixup: NonNegative = 0.0
    """Alpha of the Beta distribution by which training images are mixed with a neighbour in the micro-batch. 0: not mixed."""
    stochastic_depth: Below1 = 0.0
    """How often the ResNet's last block is left out of a training sample; those before it less often (Huang et al. 2016)."""
    workers: Annotated[int, Meta(ge=0)] = 0
    """Processes that decode image folders. 0: decode in this one."""

    @property
    def augments(self) -> bool:
        """Whether anything is drawn per image."""
        return self.augment or self.mixup > 0 or self.stochastic_depth > 0

    def model(self) -> nn.Module:
        """Images [n, c, h, w] in [-1, 1] -> logits [n, classes]."""
        shape = open_images(self.root, self.size).shape()
        if self.stochastic_depth and self.net not in BLOCKS:
            at = f"is {self.stochastic_depth:g}, but {self.net} has none of our residual blocks"
            raise UserError("recipe.stochastic_depth", at, f"leave it out, or use recipe.net: {' or '.join(BLOCKS)}")
        if self.net.startswith(TIMM):
            model = self._timm(shape)
        elif self.net in BLOCKS:
            width = self.width or RESNET_WIDTH
            drop = self.stochastic_depth
            model = resnet(shape, self.net, width=width, norm=self.norm, dropout=self.dropout, depth_drop=drop)
        elif self.net == "mlp":
            model = mlp(shape, width=self.width or MLP_WIDTH, norm=self.norm, dropout=self.dropout)
        else:
            known = [*BLOCKS, "mlp", TIMM + "NAME"]
            raise UserError("recipe.net", f"{self.net!r} is unknown", did_you_mean(self.net, known))
        return use_ghosts(model, self.norm_samples)

    def _timm(self, shape: Shape) -> nn.Module:
        if self.norm != "batch" or self.width is not None:
            setting, value = ("width", self.width) if self.width is not None else ("norm", self.norm)
            raise UserError(f"recipe.{setting}", f"is {value}, but {self.net} has its own", "leave it out")
        return timm_model(self.net.removeprefix(TIMM), shape, self.dropout)

    def data(self, split: Split) -> Data:
        """Samples of image uint8 [c, h, w] and label int64: a Table for IDX files, decoded on demand for folders."""
        source = open_images(self.root, self.size)
        if not source.decodes:
            self._check_undecoded()
        return source.split(split, self.transform(split))

    def transform(self, split: Split) -> Transform:
        """From an image of a folder to a tensor [3, size, size]: bytes, or floats that the model gets as they are.

        A subclass may return torchvision's transforms.v2: they get the RGB image, and what they draw belongs to the sample and
        epoch, whatever ranks and workers there are. It sets `augment: bool = False` where they replace `crop` and `flip`.
        """
        size = self.size or 0
        if self.crop == "shift":
            return CentreSquare(size)
        return RandomResizedCrop(size) if split == "train" and self.augment else CentreCrop(size)

    def _check_undecoded(self) -> None:
        """Raises UserError for what is done when an image is decoded, where the images lie in memory."""
        if type(self).transform is not Images.transform:
            at = f"{self.root} holds IDX files, to which transform() of {type(self).__name__} is not applied"
            raise UserError("recipe.root", at, "give a folder of images, or leave transform() out")
        if self.crop != "shift":
            at = f"is {self.crop}, but {self.root} holds IDX files, which are taken as they are"
            raise UserError("recipe.crop", at, "leave it out, or give a folder of images")

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Sum:
        """Cross-entropy with label smoothing, summed over images. Augmented and mixed by the batch's `key` in training only."""
        image, label = batch["image"], batch["label"]
        if not model.training:
            return self._cross_entropy(model(scaled(image, model)), label).sum(), len(label)
        if self.augment and self.crop == "shift":
            image = augment(image, batch["key"], flip=self.flip)
        elif self.augment and self.flip:
            image = mirrored(image, batch["key"])
        x = scaled(image, model)
        if not self.mixup:
            return self._cross_entropy(self._logits(model, x, batch), label).sum(), len(label)
        total = mixed_loss(batch["key"], self.mixup, x, label, lambda mixed: self._logits(model, mixed, batch), self._cross_entropy)
        return total, len(label)

    def _logits(self, model: nn.Module, x: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """The model's outputs in training; with stochastic depth, each sample's key decides which blocks are left out."""
        logits: Tensor = model(x, batch["key"]) if self.stochastic_depth else model(x)
        return logits

    def metrics(self, model: nn.Module, batch: Any) -> dict[str, Sum]:
        """Loss without smoothing, and accuracy."""
        logits, label = model(scaled(batch["image"], model)), batch["label"]
        right = 100.0 * (logits.argmax(-1) == label).sum()
        return {"loss": (cross_entropy(logits, label, reduction="sum"), len(label)), "accuracy_pct": (right, len(label))}

    def _cross_entropy(self, logits: Tensor, label: Tensor) -> Tensor:
        return cross_entropy(logits, label, label_smoothing=self.label_smoothing, reduction="none")


def scaled(image: Tensor, model: nn.Module) -> Tensor:
    """Bytes 0..255 [n, c, h, w] as numbers in [-1, 1], in the type of the model's weights; floats as they are, in that type."""
    numbers = image.to(next(model.parameters()).dtype)
    return numbers if image.is_floating_point() else numbers / 127.5 - 1


def timm_model(name: str, shape: Shape, dropout: float) -> nn.Module:
    """The model `name` of timm with fresh weights, made for `shape`. Raises UserError."""
    try:
        import timm
    except ImportError as e:
        raise UserError("recipe.net", f"{TIMM}{name} needs timm ({e})", "pip install 'widebatch[vision]'") from e
    if not timm.is_model(name) or "." in name:
        remedy = (
            "timm.list_models() lists their names; leave out a tag of pretrained weights, such as .a1_in1k: weights start fresh"
        )
        raise UserError("recipe.net", f"timm has no model {name!r}", remedy)
    fixed = timm.models.get_pretrained_cfg_value(name, "fixed_input_size")
    img_size = (shape.height, shape.width) if fixed else None
    model: nn.Module = timm.create_model(
        name, num_classes=shape.classes, in_chans=shape.channels, drop_rate=dropout, img_size=img_size
    )
    return model
