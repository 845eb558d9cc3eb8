"""Random-resized crops of image files: where they lie, what is in them, and that they are the same on every layout."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from harness.config.errors import UserError
from harness.data.feed import Feed
from harness.data.sample_order import Order, keys, step_shards
from harness.data.seeding import seed_all
from harness.recipes.base import Split
from harness.recipes.image_augment import mirrored
from harness.recipes.image_crops import CentreCrop, RandomResizedCrop, random_box
from harness.recipes.image_files import Transform, read_image
from harness.recipes.images import Images
from tests.unit.test_images import pictures, write_split

IMAGES, SIZE = 12, 16


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    seed_all(0)


def slopes(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards, blue both ways; no edges that JPEG would blur."""
    x = np.broadcast_to(np.linspace(0, 255, width), (height, width))
    y = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    return Image.fromarray(np.stack([x, y, (x + y) / 2], 2).round().astype(np.uint8))


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two classes of slopes, of several shapes."""
    for split in ("train", "valid"):
        for label in ("a", "b"):
            (tmp_path / split / label).mkdir(parents=True)
            for n in range(IMAGES // 2):
                slopes(40 + 5 * n, 60 - 3 * n).save(tmp_path / split / label / f"{n}.jpg", quality=95)
    return tmp_path


def test_random_boxes_have_the_areas_and_ratios_of_the_paper() -> None:
    """Area uniform in 8 % to 100 %, less those that do not fit; ratios even on both sides of 1; anywhere in the image."""
    width, height, n = 4000, 4000, 4000
    boxes = [random_box(width, height) for _ in range(n)]
    assert all(0 <= left < right <= width and 0 <= top < bottom <= height for left, top, right, bottom in boxes)
    areas = np.array([(r - a) * (b - t) / (width * height) for a, t, r, b in boxes])
    ratios = np.array([(r - a) / (b - t) for a, t, r, b in boxes])
    assert 0.079 < areas.min() < 0.085
    assert areas.max() > 0.95
    for low, high in ((0.08, 0.24), (0.24, 0.4), (0.4, 0.56)):  # where every ratio fits
        assert np.mean((areas > low) & (areas < high)) == pytest.approx(np.mean((areas > 0.08) & (areas < 0.24)), rel=0.15)
    assert 0.749 < ratios.min() < 0.76
    assert 1.32 < ratios.max() < 1.335
    assert np.mean(ratios > 1) == pytest.approx(0.5, abs=0.04)
    slack = np.array([(a / (width - (r - a)), t / (height - (b - t))) for a, t, r, b in boxes if r - a < width and b - t < height])
    assert slack.mean(0) == pytest.approx([0.5, 0.5], abs=0.03)
    assert slack.std(0) == pytest.approx([12**-0.5] * 2, abs=0.02)


def test_random_boxes_are_torchvision_s() -> None:
    v2 = pytest.importorskip("torchvision.transforms.v2", exc_type=ImportError)
    crop, image = v2.RandomResizedCrop(8), torch.zeros(3, 375, 500)
    theirs = np.array([[p["width"], p["height"]] for p in (crop.make_params([image]) for _ in range(4000))])
    ours = np.array([[right - left, bottom - top] for left, top, right, bottom in (random_box(500, 375) for _ in range(4000))])
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        assert np.quantile(ours, share, axis=0) == pytest.approx(np.quantile(theirs, share, axis=0), rel=0.05)


@pytest.mark.parametrize(("width", "height"), [(1000, 30), (30, 1000), (1, 1), (3, 700)])
def test_an_image_in_which_no_box_fits_gives_its_centre(width: int, height: int) -> None:
    for _ in range(50):
        left, top, right, bottom = random_box(width, height)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert RandomResizedCrop(4)(Image.new("RGB", (width, height))).shape == (3, 4, 4)


def test_a_crop_is_what_lies_in_its_box(tmp_path: Path) -> None:
    image = slopes(300, 200)
    for seed in range(20):
        random.seed(seed)
        box = random_box(300, 200)
        random.seed(seed)
        got = RandomResizedCrop(32)(image)
        expected = torch.from_numpy(np.array(image.resize((32, 32), Image.Resampling.BILINEAR, box=box))).permute(2, 0, 1)
        assert (got.int() - expected.int()).abs().max() <= 2


def test_the_evaluated_square_is_the_centre_of_the_resized_image(tmp_path: Path) -> None:
    image = slopes(500, 375)
    got = CentreCrop(224)(image)
    whole = image.resize((341, 256), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.array(whole.crop((58, 16, 282, 240)))).permute(2, 0, 1)
    assert (got.int() - expected.int()).abs().max() <= 2


@pytest.mark.parametrize("crop", [CentreCrop(24), RandomResizedCrop(24)])
def test_a_large_jpeg_is_decoded_smaller_and_shows_the_same(crop: Transform, tmp_path: Path) -> None:
    slopes(801, 603).save(tmp_path / "a.jpg", quality=95)
    slopes(801, 603).save(tmp_path / "a.png")
    for seed in range(10):
        random.seed(seed)
        small = read_image(tmp_path / "a.jpg", crop)
        random.seed(seed)
        assert (small.int() - read_image(tmp_path / "a.png", crop).int()).abs().max() <= 6
    with Image.open(tmp_path / "a.jpg") as image:
        CentreCrop(24)(image)
        assert image.size == (101, 76)


@pytest.mark.parametrize(("mode", "suffix"), [("L", "jpg"), ("CMYK", "jpg"), ("P", "png"), ("RGBA", "png"), ("1", "png")])
def test_images_of_every_mode_become_rgb(mode: str, suffix: str, tmp_path: Path) -> None:
    slopes(60, 50).convert(mode).save(tmp_path / f"a.{suffix}")
    for crop in (CentreCrop(8), RandomResizedCrop(8)):
        assert read_image(tmp_path / f"a.{suffix}", crop).shape == (3, 8, 8)


def test_half_of_the_images_are_mirrored_by_their_keys() -> None:
    image = torch.randint(0, 256, (400, 3, 4, 5), dtype=torch.uint8)
    key = torch.from_numpy(keys(3, 0, 400))
    got = mirrored(image, key)
    flipped = [torch.equal(a, b.flip(-1)) for a, b in zip(got, image, strict=True)]
    assert all(torch.equal(a, b) for a, b, turned in zip(got, image, flipped, strict=True) if not turned)
    assert 150 < sum(flipped) < 250
    assert torch.equal(torch.cat([mirrored(image[:7], key[:7]), mirrored(image[7:], key[7:])]), got)


def _own(image: Image.Image) -> Tensor:
    """What a user may write: numbers from torch, numpy and Python's `random`."""
    turned = image.rotate(torch.rand(()).item() * 90).resize((SIZE, SIZE))
    pixels = torch.from_numpy(np.array(turned)).permute(2, 0, 1).float() / 255
    return pixels + torch.rand(3, SIZE, SIZE) + np.random.random() + random.random()  # noqa: S311


def _torchvision() -> Transform:
    v2 = pytest.importorskip("torchvision.transforms.v2", exc_type=ImportError)
    found: Transform = v2.Compose(
        [
            v2.RandomResizedCrop(SIZE),
            v2.ColorJitter(0.4, 0.4),
            v2.RandAugment(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    return found


@dataclass(frozen=True)
class Own(Images):
    """A recipe with transforms of its own."""

    augment: bool = False
    by: str = "own"

    def transform(self, split: Split) -> Transform:
        """Those, for training."""
        if split == "valid":
            return CentreCrop(SIZE)
        return _own if self.by == "own" else _torchvision()


def seen(recipe: Images, workers: int, micro: int, world: int) -> dict[int, Tensor]:
    """The image at each position of three epochs, as the ranks of a world get them."""
    found: dict[int, Tensor] = {}
    for rank in range(world):
        data = recipe.data("train")
        feed = Feed(data, order=Order(IMAGES, 5), device=torch.device("cpu"), dtype=None, seed=9, workers=workers, key_seed=7)
        for _, micros in feed.steps(step_shards(0, 3 * IMAGES, 6, micro, world, rank, world)):
            for one in micros:
                found |= dict(zip(range(one.chunk.start, one.chunk.start + one.chunk.count), one.batch["image"], strict=True))
    return found


@pytest.mark.parametrize("by", ["built-in", "own", "torchvision"])
def test_the_crop_of_a_sample_is_the_same_on_every_layout_and_another_in_each_epoch(by: str, folders: Path) -> None:
    recipe = (
        Own(root=str(folders), size=SIZE, by=by)
        if by != "built-in"
        else Images(root=str(folders), size=SIZE, crop="random_resized")
    )
    if by == "torchvision":
        _torchvision()
    one = seen(recipe, workers=0, micro=6, world=1)
    assert sorted(one) == list(range(3 * IMAGES))
    for workers, micro, world in ((0, 1, 1), (2, 3, 1), (1, 1, 3), (0, 3, 2)):
        other = seen(recipe, workers, micro, world)
        assert all(torch.equal(one[place], other[place]) for place in range(3 * IMAGES))
    order = Order(IMAGES, 5)
    of: dict[int, list[Tensor]] = {}
    for place, sample in enumerate(order.take(0, 3 * IMAGES).tolist()):
        of.setdefault(sample, []).append(one[place])
    assert all(not torch.equal(a, b) for a, b, _ in of.values())


def test_what_is_evaluated_is_not_drawn(folders: Path) -> None:
    for recipe in (Images(root=str(folders), size=SIZE, crop="random_resized"), Own(root=str(folders), size=SIZE)):
        valid: Any = recipe.data("valid")
        assert all(torch.equal(valid[i]["image"], valid[i]["image"]) for i in range(IMAGES))
    still: Any = Images(root=str(folders), size=SIZE, crop="random_resized", augment=False).data("train")
    assert torch.equal(still[3]["image"], still[3]["image"])


class Mean(nn.Module):
    """Logits from the mean of each image, of which the first channel is the logit of class 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """[n, c, h, w] -> [n, c]."""
        return self.weight * x.mean((2, 3))


def test_floats_of_a_transform_reach_the_model_as_they_are_and_bytes_scaled() -> None:
    batch = {
        "image": torch.full((2, 3, 4, 4), 0.5),
        "label": torch.zeros(2, dtype=torch.int64),
        "key": torch.zeros(2, dtype=torch.int64),
    }
    batch["image"][:, 0] = 2.0
    recipe = Images(augment=False)
    floats, _ = recipe.loss(Mean().train(), batch)
    assert floats.item() == pytest.approx(2 * -torch.log_softmax(torch.tensor([2.0, 0.5, 0.5]), 0)[0].item())
    batch["image"] = torch.tensor([255, 0, 0], dtype=torch.uint8)[None, :, None, None].expand(2, 3, 4, 4)
    bytes_, _ = recipe.loss(Mean().train(), batch)
    assert bytes_.item() == pytest.approx(2 * -torch.log_softmax(torch.tensor([1.0, -1.0, -1.0]), 0)[0].item())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda root: Images(root=root, crop="random_resized"), r"recipe\.crop: is random_resized, but .* holds IDX files"),
        (lambda root: Own(root=root), r"recipe\.root: .* holds IDX files, to which transform\(\) of Own is not applied"),
    ],
)
def test_crops_of_images_in_memory_are_refused(make: Callable[[str], Images], said: str, tmp_path: Path) -> None:
    for stem in ("train", "t10k"):
        write_split(tmp_path, stem, *pictures(12, 0))
    with pytest.raises(UserError, match=said):
        make(str(tmp_path)).data("train")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_is_a_bad_sample_of_any_transform(workers: int, folders: Path) -> None:
    (folders / "train/a/1.jpg").write_bytes(b"no image")
    for recipe in (Images(root=str(folders), size=SIZE, crop="random_resized"), Own(root=str(folders), size=SIZE)):
        feed = Feed(recipe.data("train"), order=None, device=torch.device("cpu"), dtype=None, workers=workers)
        counts = [m.chunk.count for _, micros in feed.steps(step_shards(0, 12, 12, 6, 1, 0, 1)) for m in micros]
        assert counts == [5, 6]
        assert [trouble.sample for trouble in feed.troubles] == [1]
