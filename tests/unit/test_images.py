"""The recipe images: files, augmentation, ghost BatchNorm, loss, and training on tiny made-up data."""

import gzip
import math
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from harness.config.errors import UserError
from harness.config.loader import load
from harness.config.schema import Knob, RecipeConfig
from harness.data.feed import Feed, Table
from harness.data.sample_order import keys, step_shards
from harness.data.seeding import seed_all
from harness.recipes.base import load_recipe
from harness.recipes.image_augment import augment
from harness.recipes.image_crops import CentreSquare
from harness.recipes.image_files import ImageList, Shape, open_images, read_image
from harness.recipes.images import Images, scaled
from harness.recipes.mixup import mix, symmetric_beta
from harness.recipes.resnet import Block, GhostBatchNorm, resnet

Bytes = NDArray[np.uint8]
DTYPES = (torch.float32, torch.float64)
CLASSES = 3


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    seed_all(0)


def write_idx(path: Path, array: Bytes, *, packed: bool = False) -> None:
    body = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
    if packed:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(body))
    else:
        path.write_bytes(body)


def pictures(n: int, seed: int, side: int = 8) -> tuple[Bytes, Bytes]:
    """Noise with a bright band of rows that tells the class: images [n, side, side] and labels [n]."""
    rng = np.random.default_rng(seed)
    label = np.arange(n, dtype=np.uint8) % CLASSES
    image = rng.integers(0, 60, (n, side, side), dtype=np.uint8)
    for row in (0, 1):
        image[np.arange(n), 2 * label + 1 + row] += 150
    return image, label


def write_split(root: Path, stem: str, image: Bytes, label: Bytes, *, packed: bool = False) -> None:
    write_idx(root / f"{stem}-images-idx3-ubyte", image, packed=packed)
    write_idx(root / f"{stem}-labels-idx1-ubyte", label, packed=packed)


@pytest.fixture
def idx(tmp_path: Path) -> Path:
    write_split(tmp_path, "train", *pictures(96, 0))
    write_split(tmp_path, "t10k", *pictures(30, 1))
    return tmp_path


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two classes, "night" dark and "day" bright, four images to train and two to validate each."""
    for split, n in (("train", 4), ("val", 2)):
        for name, value in (("night", 10), ("day", 200)):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (12, 9), (value + i, value, value)).save(folder / f"{i}.{'PNG' if i else 'png'}")
            (folder / "notes.txt").write_text("no image")
    return tmp_path


def batch_of(table: Table, start: int, stop: int, seed: int = 5) -> dict[str, Tensor]:
    return table.take(torch.arange(start, stop)) | {"key": torch.from_numpy(keys(seed, start, stop))}


def table_of(recipe: Images) -> Table:
    data = recipe.data("train")
    assert isinstance(data, Table)
    return data


# files


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_are_read_as_written(tmp_path: Path, packed: bool) -> None:
    train, valid = pictures(12, 0), pictures(6, 1)
    write_split(tmp_path, "train", *train, packed=packed)
    write_split(tmp_path, "t10k", *valid, packed=packed)
    source = open_images(str(tmp_path), None)
    assert source.shape() == Shape(1, 8, 8, CLASSES)
    for data, (image, label) in ((source.split("train", CentreSquare(8)), train), (source.split("valid", CentreSquare(8)), valid)):
        assert isinstance(data, Table)
        assert data.columns["image"].dtype == torch.uint8
        assert np.array_equal(data.columns["image"].numpy(), image[:, None])
        assert data.columns["label"].dtype == torch.int64
        assert np.array_equal(data.columns["label"].numpy(), label)


def _wrong_magic(root: Path) -> None:
    path = root / "train-images-idx3-ubyte"
    path.write_bytes(b"\x00\x00\x0d\x03" + path.read_bytes()[4:])


def _truncated(root: Path) -> None:
    path = root / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])


def _short_header(root: Path) -> None:
    path = root / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:9])


def _truncated_gzip(root: Path) -> None:
    path = root / "train-images-idx3-ubyte"
    (root / (path.name + ".gz")).write_bytes(gzip.compress(path.read_bytes())[:-30])
    path.unlink()


def _no_gzip(root: Path) -> None:
    path = root / "train-labels-idx1-ubyte"
    path.rename(root / (path.name + ".gz"))


def _fewer_labels(root: Path) -> None:
    write_idx(root / "train-labels-idx1-ubyte", pictures(95, 0)[1])


def _no_images(root: Path) -> None:
    write_split(root, "train", *pictures(0, 0))


def _missing(root: Path) -> None:
    (root / "train-labels-idx1-ubyte").unlink()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_wrong_magic, "begins with 00000d03"),
        (_truncated, "96x8x8 bytes and has 6143"),
        (_short_header, "ends within its header"),
        (_truncated_gzip, "damaged"),
        (_no_gzip, "damaged"),
        (_fewer_labels, "96 images, train-labels-idx1-ubyte has 95 labels"),
        (_no_images, "is empty"),
        (_missing, r"lacks train-labels-idx1-ubyte\[.gz\]"),
    ],
)
def test_damaged_idx_files_are_refused(idx: Path, harm: Callable[[Path], None], message: str) -> None:
    harm(idx)
    with pytest.raises(UserError, match=message) as caught:
        Images(root=str(idx)).data("train")
    assert caught.value.setting == "recipe.root"


def test_a_damaged_gzip_is_a_user_error_for_the_model_too(idx: Path) -> None:
    _no_gzip(idx)
    (idx / "train-images-idx3-ubyte").rename(idx / "train-images-idx3-ubyte.gz")
    with pytest.raises(UserError, match="damaged"):
        Images(root=str(idx)).model()


def test_splits_of_two_data_sets_are_refused(idx: Path) -> None:
    image, label = pictures(30, 1)
    write_split(idx, "t10k", image, label + np.uint8(1))
    with pytest.raises(UserError, match="has label 3, those to train end at 2"):
        Images(root=str(idx)).data("valid")
    write_split(idx, "t10k", *pictures(30, 1, side=9))
    with pytest.raises(UserError, match="images of 9x9, those to train are 8x8"):
        Images(root=str(idx)).data("valid")


def test_size_that_idx_files_do_not_have_is_refused(idx: Path) -> None:
    with pytest.raises(UserError, match=r"recipe\.size: is 32, but the images of .* are 8x8"):
        Images(root=str(idx), size=32).model()
    Images(root=str(idx), size=8).model()


def test_a_folder_with_neither_kind_is_refused(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"recipe\.root: .* holds neither"):
            Images(root=str(root)).data("train")


def test_image_folders_are_read_in_order_of_class(folders: Path) -> None:
    recipe = Images(root=str(folders), size=6)
    train, valid = recipe.data("train"), recipe.data("valid")
    assert (len(train), len(valid)) == (8, 4)
    assert isinstance(train, ImageList)
    samples: list[Any] = [train[i] for i in range(8)]
    assert [s["label"] for s in samples] == [0] * 4 + [1] * 4
    assert [int(s["image"][0, 3, 3]) for s in samples] == [200, 201, 202, 203, 10, 11, 12, 13]
    assert samples[0]["image"].shape == (3, 6, 6)
    assert samples[0]["image"].dtype == torch.uint8
    assert open_images(str(folders), 6).shape() == Shape(3, 6, 6, 2)


def test_images_are_cut_to_their_centred_square(tmp_path: Path) -> None:
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, 8:16] = (9, 99, 199)
    pixels[0, 10] = (50, 60, 70)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    expected = torch.from_numpy(pixels[:, 8:16]).permute(2, 0, 1)
    assert torch.equal(read_image(tmp_path / "wide.png", CentreSquare(8)), expected)
    assert read_image(tmp_path / "wide.png", CentreSquare(4))[:, 1:3, 1:3].flatten(1).tolist() == [[9] * 4, [99] * 4, [199] * 4]


def test_decoding_processes_give_the_same_batches(folders: Path) -> None:
    recipe = Images(root=str(folders), size=6)

    def batches(workers: int) -> list[Tensor]:
        feed = Feed(recipe.data("train"), order=None, device=torch.device("cpu"), dtype=torch.float32, workers=workers)
        return [m.batch["image"] for _, micros in feed.steps(step_shards(0, 8, 4, 2, 1, 0, 1)) for m in micros]

    alone, helped = batches(0), batches(1)
    assert len(alone) == 4
    assert all(torch.equal(a, b) for a, b in zip(alone, helped, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_a_bad_sample(folders: Path, workers: int) -> None:
    """It counts against guard.bad_samples, as a sample of any recipe does: one that is not an image, and one that is cut short."""
    (folders / "train/day/1.PNG").write_bytes(b"no image at all")
    whole = (folders / "train/night/2.PNG").read_bytes()
    (folders / "train/night/2.PNG").write_bytes(whole[: len(whole) // 2])
    recipe: Any = Images(root=str(folders), size=6, workers=workers, augment=False)
    options: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32, "collate": recipe.collate}
    feed = Feed(recipe.data("train"), order=None, workers=workers, **options)
    counts = [m.chunk.count for _, micros in feed.steps(step_shards(0, 8, 8, 4, 1, 0, 1)) for m in micros]
    assert counts == [3, 3]
    assert [t.sample for t in feed.troubles] == [1, 6]
    assert "1.PNG is not an image that pillow can read" in feed.troubles[0].text


def test_errors_of_image_folders(folders: Path) -> None:
    recipe = Images(root=str(folders), size=6)
    with pytest.raises(UserError, match=r"recipe\.size: is unset"):
        Images(root=str(folders)).model()
    (folders / "train/day/0.png").write_bytes(b"no image at all")
    with pytest.raises(ValueError, match=r"0\.png is not an image"):
        recipe.data("train")[0]  # type: ignore[index]
    (folders / "val" / "dusk").mkdir()
    with pytest.raises(UserError, match="differ: dusk"):
        recipe.data("valid")
    (folders / "train" / "dusk").mkdir()
    with pytest.raises(UserError, match=r"dusk holds no \.png"):
        recipe.data("train")
    (folders / "val").rename(folders / "other")
    with pytest.raises(UserError, match="has none of valid, val, test"):
        recipe.data("valid")


def test_classes_are_sorted_and_hidden_folders_are_none(tmp_path: Path) -> None:
    names = ["pear", "fig", "date", "apple", "plum", "lime", "kiwi", "nut"]
    for name in [*names, ".ipynb_checkpoints"]:
        for split in ("train", "valid"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("L", (4, 4), ord(name[0])).save(tmp_path / split / name / "one.jpeg")
    source = open_images(str(tmp_path), 4)
    data = source.split("valid", CentreSquare(4))
    assert source.shape().classes == 8
    assert not isinstance(data, Table)
    assert [chr(int(data[i]["image"][0, 1, 1])) for i in range(8)] == [name[0] for name in sorted(names)]


# augmentation


def _moved(image: Tensor, up: int, left: int, mirrored: bool) -> Tensor:
    """One image [c, h, w] moved down by `up` and right by `left` pixels, black coming in; then mirrored."""
    out = torch.zeros_like(image)
    _, h, w = image.shape
    for y in range(h):
        for x in range(w):
            if 0 <= y - up < h and 0 <= x - left < w:
                out[:, y, x] = image[:, y - up, x - left]
    return out.flip(2) if mirrored else out


def test_augmentation_moves_and_mirrors_each_image() -> None:
    image = torch.arange(1, 2 * 8 * 16 + 1).to(torch.uint8).reshape(1, 2, 8, 16).expand(300, 2, 8, 16)
    ways = {(up, left, m): _moved(image[0], up, left, m) for up in (-1, 0, 1) for left in (-2, -1, 0, 1, 2) for m in (False, True)}
    seen = dict.fromkeys(ways, 0)
    for one in augment(image, torch.from_numpy(keys(3, 0, 300)), flip=True):
        (way,) = [w for w, picture in ways.items() if torch.equal(picture, one)]
        seen[way] += 1
    assert min(seen.values()) > 0
    assert max(seen.values()) < 30
    assert 110 < sum(n for way, n in seen.items() if way[2]) < 190
    unmirrored = [picture for way, picture in ways.items() if not way[2]]
    for one in augment(image[:50], torch.from_numpy(keys(3, 0, 50)), flip=False):
        assert any(torch.equal(picture, one) for picture in unmirrored)


def test_augmentation_of_a_sample_does_not_hang_on_its_batch() -> None:
    image = torch.randint(0, 256, (40, 1, 9, 8), dtype=torch.uint8)
    key = torch.from_numpy(keys(11, 0, 40))
    whole = augment(image, key, flip=True)
    parts = torch.cat([augment(image[a:b], key[a:b], flip=True) for a, b in ((0, 1), (1, 17), (17, 40))])
    assert torch.equal(whole, parts)
    assert not torch.equal(whole, image)
    assert not torch.equal(whole, augment(image, torch.from_numpy(keys(12, 0, 40)), flip=True))


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 4.0])
def test_shares_follow_the_beta_distribution(alpha: float) -> None:
    n = 100_000
    share = symmetric_beta(torch.from_numpy(keys(2, 0, n)), alpha)
    variance = 1 / (4 * (2 * alpha + 1))
    fourth = 3 / (16 * (2 * alpha + 1) * (2 * alpha + 3))
    assert bool(((share >= 0) & (share <= 1)).all())
    assert abs(float(share.mean()) - 0.5) < 4 * math.sqrt(variance / n)
    assert float(share.var()) == pytest.approx(variance, rel=0.02)
    assert float(((share - 0.5) ** 4).mean()) == pytest.approx(fourth, rel=0.02)


def test_mix_takes_the_sample_before() -> None:
    x = torch.tensor([[10.0, 20.0], [30.0, 40.0]])
    assert mix(x, torch.tensor([0.25, 0.5])).tolist() == [[25.0, 35.0], [20.0, 30.0]]


# BatchNorm


def _reference_norm(dtype: torch.dtype) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(3).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        norm.bias.copy_(torch.tensor([1.0, 0.0, -1.0]))
    return norm


@pytest.mark.parametrize("dtype", DTYPES)
def test_ghost_batch_norm_is_batch_norm_of_each_group(dtype: torch.dtype) -> None:
    x = torch.randn(10, 3, 2, 2, dtype=dtype) * torch.arange(1, 11, dtype=dtype).view(-1, 1, 1, 1)
    plain, ghost = _reference_norm(dtype), GhostBatchNorm(_reference_norm(dtype), 4)
    expected = torch.cat([plain(x[:4]), plain(x[4:8]), plain(x[8:])])
    assert torch.equal(ghost(x), expected)
    assert isinstance(ghost.norm, nn.BatchNorm2d)
    assert ghost.norm.running_var is not None
    assert plain.running_var is not None
    assert torch.equal(ghost.norm.running_var, plain.running_var)
    assert not torch.allclose(expected, _reference_norm(dtype)(x))
    plain.eval()
    ghost.eval()
    assert torch.equal(ghost(x), plain(x))
    assert torch.allclose(ghost(x)[:1], ghost(x[:1]))


def test_a_group_with_one_value_takes_the_running_statistics() -> None:
    norm = nn.BatchNorm1d(2)
    ghost = GhostBatchNorm(norm, 2)
    x = torch.tensor([[1.0, 2.0], [3.0, 8.0], [5.0, 5.0]])
    out = ghost(x)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.running_mean.tolist() == pytest.approx([0.2, 0.5])
    assert torch.allclose(out[2], (x[2] - norm.running_mean) / (norm.running_var + norm.eps).sqrt())
    assert norm.training
    one_pixel = GhostBatchNorm(nn.BatchNorm2d(2), 4)(torch.randn(5, 2, 3, 3))
    assert torch.allclose(one_pixel[4].mean((1, 2)), torch.zeros(2), atol=1e-6)


@pytest.mark.parametrize(("net", "tail"), [("resnet8", 1), ("mlp", 3)])
def test_loss_and_gradient_do_not_hang_on_the_micro_batch(idx: Path, net: str, tail: int) -> None:
    """16 + `tail` samples in one pass, or in passes of 8, over groups of 8: the same sum."""
    recipe = Images(root=str(idx), net=net, norm_samples=8)
    data, n = table_of(recipe), 16 + tail
    model = recipe.model().double()

    def step(cuts: list[int], recipe: Images) -> tuple[float, Tensor]:
        model.zero_grad()
        total = 0.0
        for a, b in pairwise(cuts):
            loss, count = recipe.loss(model, batch_of(data, a, b))
            assert count == b - a
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        return total, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    (whole, gradient), (cut, other) = step([0, n], recipe), step([0, 8, 16, n], recipe)
    assert whole == pytest.approx(cut, rel=1e-12)
    assert torch.allclose(gradient, other, rtol=1e-9, atol=1e-11)
    assert step([0, 4, 8, 12, 16, n], recipe)[0] != pytest.approx(whole, rel=1e-6)


# loss and metrics


class Fixed(nn.Module):
    """Logits of the mean pixel: [x, 0, -x]. One weight, so that its type is known."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, image: Tensor) -> Tensor:
        x = image.mean((1, 2, 3)) * self.weight
        return torch.stack([x, 0 * x, -x], 1)


def _log_softmax(x: float) -> list[float]:
    logits = [x, 0.0, -x]
    total = math.log(sum(math.exp(v) for v in logits))
    return [v - total for v in logits]


def _tiny() -> dict[str, Tensor]:
    """Two grey images, at 1 and -0.6 after scaling, labels 0 and 1."""
    image = torch.tensor([255, 51], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    return {"image": image, "label": torch.tensor([0, 1]), "key": torch.from_numpy(keys(9, 0, 2))}


@pytest.mark.parametrize("dtype", DTYPES)
def test_bytes_become_numbers_in_the_type_of_the_weights(dtype: torch.dtype) -> None:
    out = scaled(torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8), Fixed().to(dtype))
    assert out.dtype == dtype
    assert out.flatten().tolist() == pytest.approx([-1, -0.6, 1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_label_smoothing_spreads_the_target(dtype: torch.dtype) -> None:
    loss, count = Images(label_smoothing=0.3, augment=False).loss(Fixed().to(dtype).train(), _tiny())
    a, b = _log_softmax(1.0), _log_softmax(-0.6)
    assert loss.item() == pytest.approx(-0.7 * a[0] - 0.1 * sum(a) - 0.7 * b[1] - 0.1 * sum(b), rel=1e-6)
    assert loss.dtype == dtype
    assert count == 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_mixup_mixes_images_and_targets_by_the_same_share(dtype: torch.dtype) -> None:
    batch = _tiny()
    s, t = symmetric_beta(batch["key"], 0.7).tolist()
    loss, _ = Images(mixup=0.7, augment=False).loss(Fixed().to(dtype).train(), batch)
    a, b = _log_softmax(s * 1.0 + (1 - s) * -0.6), _log_softmax(t * -0.6 + (1 - t) * 1.0)
    assert loss.item() == pytest.approx(-s * a[0] - (1 - s) * a[1] - t * b[1] - (1 - t) * b[0], rel=1e-5)
    assert loss.dtype == dtype
    assert abs(s - t) > 0.01


def test_metrics_are_plain_sums() -> None:
    sums = Images(label_smoothing=0.3, mixup=0.7).metrics(Fixed().eval(), _tiny())
    assert sums["loss"][0].item() == pytest.approx(-_log_softmax(1.0)[0] - _log_softmax(-0.6)[1], rel=1e-6)
    assert sums["accuracy_pct"][0].item() == 100.0
    assert sums["loss"][1] == sums["accuracy_pct"][1] == 2


def test_only_training_augments(idx: Path) -> None:
    recipe = Images(root=str(idx), net="mlp", norm="none", mixup=1.0)
    model, data = recipe.model(), table_of(recipe)
    one, other = batch_of(data, 0, 16, seed=1), batch_of(data, 0, 16, seed=2)
    assert recipe.loss(model.train(), one)[0].item() != recipe.loss(model, other)[0].item()
    assert recipe.loss(model.eval(), one)[0].item() == recipe.loss(model, other)[0].item()
    del one["key"]
    assert recipe.loss(model, one)[0].item() == pytest.approx(recipe.metrics(model, one)["loss"][0].item())


# models


def test_resnet20_has_the_paper_s_weights() -> None:
    """0.27 million in He et al. 2016, table 6; by hand 267,696 in convolutions, 1,376 in norms, 650 in the last layer."""
    model = resnet(Shape(3, 32, 32, 10), "resnet20", width=16, norm="batch", dropout=0.0)
    assert sum(p.numel() for p in model.parameters() if p.ndim == 4) == 267_696
    assert sum(p.numel() for p in model.parameters()) == 267_696 + 1_376 + 650
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) == 20
    sides: list[int] = []
    for module in model.modules():
        if isinstance(module, Block):
            module.register_forward_hook(lambda _module, _args, out: sides.append(out.shape[-1]))
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert sides == [32] * 3 + [16] * 3 + [8] * 3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "recipe",
    [
        Images(norm_samples=8),
        Images(norm="group", width=8, label_smoothing=0.1),
        Images(norm="none", mixup=0.2),
        Images(net="mlp", width=32, dropout=0.1, flip=False),
    ],
    ids=["batch", "group", "none", "mlp"],
)
def test_training_lowers_the_loss(idx: Path, recipe: Images, dtype: torch.dtype) -> None:
    knobs = {name: value for name, value in vars(recipe).items() if name != "root"}
    recipe = Images(root=str(idx), **knobs)
    model, data = recipe.model().to(dtype), table_of(recipe)
    valid = recipe.data("valid")
    assert isinstance(valid, Table)
    before = recipe.metrics(model.eval(), valid.columns)["loss"][0].item() / len(valid)
    optimizer = torch.optim.Adam(model.parameters(), 0.005)
    for step in range(24):
        start = step * 32 % 96
        loss, count = recipe.loss(model.train(), batch_of(data, start, start + 32, seed=step))
        (loss / count).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    after = recipe.metrics(model.eval(), valid.columns)
    assert after["loss"][0].dtype == dtype
    assert after["loss"][0].item() / len(valid) < 0.8 * before
    assert after["accuracy_pct"][0].item() / len(valid) > 60


def test_every_batch_norm_is_a_ghost_of_norm_samples(idx: Path) -> None:
    for net in ("resnet8", "mlp"):
        modules = list(Images(root=str(idx), net=net, norm_samples=6).model().modules())
        ghosts = [m for m in modules if isinstance(m, GhostBatchNorm)]
        norms = [m for m in modules if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
        assert len(ghosts) == len(norms) > 1
        assert {g.samples for g in ghosts} == {6}
    for norm in ("group", "none"):
        config = RecipeConfig(use="images", knobs={"root": str(idx), "norm": norm})
        kinds = [type(m) for m in load_recipe(config).model().modules()]
        assert not {GhostBatchNorm, nn.BatchNorm2d} & set(kinds)
        assert (nn.GroupNorm in kinds) == (norm == "group")


def test_models_that_cannot_be_are_refused(idx: Path) -> None:
    with pytest.raises(UserError, match=r"recipe\.net: 'resnet9' is unknown; did you mean resnet8"):
        Images(root=str(idx), net="resnet9").model()
    with pytest.raises(UserError, match=r"recipe\.width: is 12"):
        Images(root=str(idx), norm="group", width=12).model()
    with pytest.raises(UserError, match=r"recipe\.norm: is group, but timm:resnet10t has its own"):
        Images(root=str(idx), net="timm:resnet10t", norm="group").model()
    with pytest.raises(UserError, match=r"recipe\.width: is 12, but timm:resnet10t has its own"):
        Images(root=str(idx), net="timm:resnet10t", width=12).model()


def test_missing_timm_is_a_user_error(idx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"recipe\.net: timm:resnet10t needs timm .*pip install 'widebatch\[vision\]'"):
        Images(root=str(idx), net="timm:resnet10t").model()


def test_timm_models_fit_the_images_and_get_ghosts(idx: Path) -> None:
    pytest.importorskip("timm", exc_type=ImportError)
    recipe = Images(root=str(idx), net="timm:test_resnet", norm_samples=4, dropout=0.2)
    model = recipe.model()
    ghosts = [m for m in model.modules() if isinstance(m, GhostBatchNorm)]
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(ghosts) == len(norms) > 0
    loss, count = recipe.loss(model.train(), batch_of(table_of(recipe), 0, 6))
    assert loss.isfinite()
    assert count == 6
    for name in ("nonsense", "resnet18.a1_in1k"):
        with pytest.raises(UserError, match=f"timm has no model '{name}'"):
            Images(root=str(idx), net=f"timm:{name}").model()


# run file


def test_workers_are_a_knob() -> None:
    assert load_recipe(RecipeConfig(use="images", knobs={"workers": 3})).workers == 3
    assert load_recipe(RecipeConfig(use="images")).workers == 0
    assert load_recipe(RecipeConfig(use="digits")).workers == 0
    with pytest.raises(UserError, match="no such field"):
        load_recipe(RecipeConfig(use="digits", knobs={"workers": 3}))


@pytest.mark.parametrize(
    ("knob", "value"),
    [("norm", "layer"), ("norm_samples", 1), ("dropout", 1.0), ("label_smoothing", -0.1), ("mixup", -1.0), ("workers", -1)],
)
def test_knobs_out_of_range_are_refused(knob: str, value: Knob) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(RecipeConfig(use="images", knobs={knob: value}))
    assert caught.value.setting == f"recipe.{knob}"


def test_the_run_file_names_this_recipe() -> None:
    config = load(Path(__file__).parents[2] / "configs" / "fashion_mnist.yaml", {})
    recipe = load_recipe(config.recipe)
    assert isinstance(recipe, Images)
    assert config.recipe.samples == 60_000
    assert config.batch.reference % recipe.norm_samples == 0
