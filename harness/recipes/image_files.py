"""Labelled images on disk: IDX files (the format of MNIST, LeCun et al. 1998) or a folder per class."""

import gzip
import math
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, cast, final

import torch
from PIL import Image
from torch import Tensor
from typing_extensions import override

from harness.config.errors import UserError
from harness.data.feed import MapStyle, Table
from harness.recipes.base import Split
from harness.recipes.image_crops import Crop

IDX_STEMS = {"train": "train", "valid": "t10k"}
VALID_FOLDERS = ("valid", "val", "test")
SUFFIXES = (".png", ".jpg", ".jpeg")
_UNSIGNED_BYTES = 8
Transform = Callable[[Image.Image], Any]
"""From an opened image to a tensor [c, h, w]; a `Crop` decodes for itself, another is given the decoded RGB image."""


@dataclass(frozen=True)
class Shape:
    """One image as uint8 [channels, height, width], and how many classes there are."""

    channels: int
    height: int
    width: int
    classes: int


class ImageSource(ABC):
    """A data set on disk, with samples {"image": uint8 [c, h, w], "label": int64}."""

    decodes: ClassVar[bool]
    """Whether images are decoded one by one, each by a `Transform`; else they lie in memory as they are."""

    @abstractmethod
    def shape(self) -> Shape:
        """Shape of every image, without reading them all. Raises UserError."""

    @abstractmethod
    def split(self, split: Split, transform: Transform) -> Table | MapStyle:
        """The samples of a split. Raises UserError."""


def open_images(root: str, size: int | None) -> ImageSource:
    """What lies in the folder `root`: IDX files first, else class folders, cut to `size`. Raises UserError."""
    folder = Path(root)
    if any(folder.glob("*-idx[13]-ubyte*")):
        return IdxFiles(folder, size)
    if (folder / "train").is_dir():
        if size is None:
            raise UserError("recipe.size", f"is unset, but {root} holds image folders", "give the side to cut to, as 64")
        return ClassFolders(folder, size)
    problem = f"{root!r} holds neither train-images-idx3-ubyte[.gz] nor a folder train/"
    raise UserError("recipe.root", problem, "name a folder that does, or `apt-get install dataset-fashion-mnist`")


@final
@dataclass(frozen=True)
class IdxFiles(ImageSource):
    """Four files named as MNIST's, plain or .gz. Whole arrays in memory, one channel."""

    root: Path
    size: int | None
    decodes: ClassVar[bool] = False

    @override
    def shape(self) -> Shape:
        """The training labels say how many classes there are."""
        path = self._path("train", "images-idx3")
        with _open(path) as file:
            _, height, width = _read_sizes(file, path, 3)
        if self.size is not None and (height, width) != (self.size, self.size):
            problem = f"is {self.size}, but the images of {self.root} are {height}x{width}"
            raise UserError("recipe.size", problem, "leave it out: IDX files are taken as they are")
        return Shape(1, height, width, self._classes())

    @override
    def split(self, split: Split, transform: Transform) -> Table:
        """Columns image uint8 [n, 1, h, w] and label int64 [n]."""
        images, labels = self._path(split, "images-idx3"), self._path(split, "labels-idx1")
        image, label, shape = read_idx(images, 3), read_idx(labels, 1).long(), self.shape()
        if len(image) != len(label):
            problem = f"{images} has {len(image)} images, {labels.name} has {len(label)} labels"
            raise UserError("recipe.root", problem, "download both files again, from one source")
        _, height, width = image.shape
        if (height, width) != (shape.height, shape.width):
            problem = f"{images} has images of {height}x{width}, those to train are {shape.height}x{shape.width}"
            raise UserError("recipe.root", problem, "use both splits of one data set")
        if int(label.max()) >= shape.classes:
            problem = f"{labels} has label {int(label.max())}, those to train end at {shape.classes - 1}"
            raise UserError("recipe.root", problem, "use both splits of one data set")
        return Table({"image": image[:, None], "label": label})

    def _classes(self) -> int:
        return int(read_idx(self._path("train", "labels-idx1"), 1).max()) + 1

    def _path(self, split: Split, what: str) -> Path:
        path = self.root / f"{IDX_STEMS[split]}-{what}-ubyte"
        packed = path.with_name(path.name + ".gz")
        if path.exists() or packed.exists():
            return path if path.exists() else packed
        raise UserError("recipe.root", f"{self.root} lacks {path.name}[.gz]", "put all four files there")


def read_idx(path: Path, axes: int) -> Tensor:
    """An IDX file of unsigned bytes with `axes` axes: uint8 tensor. Raises UserError if the file is damaged."""
    with _open(path) as file:
        sizes, body = _read_sizes(file, path, axes), bytearray(file.read())
    if len(body) != math.prod(sizes):
        problem = f"{path} announces {'x'.join(map(str, sizes))} bytes and has {len(body)}: truncated or damaged"
        raise UserError("recipe.root", problem, "download it again")
    if not body:
        raise UserError("recipe.root", f"{path} is empty", "download it again")
    return torch.frombuffer(body, dtype=torch.uint8).reshape(sizes)


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield cast(BinaryIO, file)
    except (EOFError, gzip.BadGzipFile, zlib.error) as e:
        raise UserError("recipe.root", f"{path} is damaged ({e})", "download it again") from e


def _read_sizes(file: BinaryIO, path: Path, axes: int) -> tuple[int, ...]:
    """The header: magic number 00 00 TYPE AXES, then one big-endian 32-bit size per axis."""
    magic, expected = file.read(4), bytes([0, 0, _UNSIGNED_BYTES, axes])
    if magic != expected:
        problem = f"{path} begins with {magic.hex()}, an IDX file of bytes with {axes} axes with {expected.hex()}"
        raise UserError("recipe.root", problem, "download it again")
    head = file.read(4 * axes)
    if len(head) < 4 * axes:
        raise UserError("recipe.root", f"{path} ends within its header", "download it again")
    return struct.unpack(f">{axes}I", head)


@final
@dataclass(frozen=True)
class ClassFolders(ImageSource):
    """`root/train/CLASS/*.png|jpg` and the same under valid, val or test. Decoded on demand, as RGB of `size` x `size`."""

    root: Path
    size: int
    decodes: ClassVar[bool] = True

    @override
    def shape(self) -> Shape:
        return Shape(3, self.size, self.size, len(_classes(self.root / "train")))

    @override
    def split(self, split: Split, transform: Transform) -> "ImageList":
        """Samples in order of class and file name; a class's label is its place in the sorted names."""
        folder = self.root / "train" if split == "train" else self._valid()
        names, known = _classes(folder), _classes(self.root / "train")
        if names != known:
            odd = ", ".join(sorted(set(names) ^ set(known)))
            raise UserError("recipe.root", f"classes of {folder} and train differ: {odd}", "give both the same folders")
        paths, labels = [], []
        for label, name in enumerate(names):
            found = sorted(p for p in (folder / name).iterdir() if p.suffix.lower() in SUFFIXES)
            if not found:
                raise UserError("recipe.root", f"{folder / name} holds no {', '.join(SUFFIXES)}", "fill or remove it")
            paths += found
            labels += [label] * len(found)
        return ImageList(paths, labels, transform)

    def _valid(self) -> Path:
        for name in VALID_FOLDERS:
            if (self.root / name).is_dir():
                return self.root / name
        raise UserError("recipe.root", f"{self.root} has none of {', '.join(VALID_FOLDERS)}", "add one, with all classes")


@final
class ImageList:
    """A map-style data set of image files: sample {"image": what `transform` makes of it, "label": int}."""

    def __init__(self, paths: list[Path], labels: list[int], transform: Transform) -> None:
        self.paths, self.labels, self.transform = paths, labels, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        return {"image": read_image(self.paths[index], self.transform), "label": self.labels[index]}

    def source(self, index: int) -> str:
        """The file."""
        return str(self.paths[index])


def read_image(path: Path, transform: Transform) -> Any:
    """What `transform` makes of an image. Raises ValueError if it is damaged, and what a transform that is no `Crop` raises."""
    try:
        with Image.open(path) as image:
            if isinstance(transform, Crop):
                return transform(image)
            decoded = image.convert("RGB")
    except Exception as e:  # pillow's decoders raise many kinds of errors
        raise ValueError(f"{path} is not an image that pillow can read ({e})") from e
    return transform(decoded)


def _classes(folder: Path) -> list[str]:
    """Sorted names of the class folders; hidden ones, as .ipynb_checkpoints, are no classes."""
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise UserError("recipe.root", f"{folder} holds no class folders", "make one folder per class in it")
    return names
