"""Images a second of one worker: the recipe `images` beside torch's DataLoader on the same JPEG files with the same kind of crops.

`python -m tests.bench.images` writes configs/results/images.json. The DataLoader's data set is a dozen lines by hand: Pillow
decodes an image and resizes the box, as torchvision's RandomResizedCrop does to one of Pillow; where torchvision is installed,
its transforms.v2 are a second one. All give uint8 [32, 3, 224, 224] from one worker process, in turns. The seconds are of the
worker's CPU time, which a busy machine does not stretch; the ratio is the median over the rounds of ours to theirs. Mirroring is
left out: ours is done on the device.
"""

import json
import resource
import statistics
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from harness.data.feed import Feed
from harness.data.sample_order import Order, step_shards
from harness.recipes.image_crops import random_box
from harness.recipes.image_files import ImageList
from harness.recipes.images import Images
from tests.bench.peers.__main__ import machine
from tests.support.processes import ROOT

OUT = ROOT / "configs" / "results" / "images.json"
ROUNDS, BATCH, SIZE = 7, 32, 224
KINDS = {"500 x 375": (500, 375, 256, 16), "2048 x 1536": (2048, 1536, 64, 4)}
"""Width, height, files, batches of a round."""
Loader = Callable[[int], Iterator[Any]]
"""So many batches."""


class Files(Dataset[tuple[Tensor, int]]):
    """Image files and what is made of each."""

    def __init__(self, paths: list[Path], transform: Callable[[Image.Image], Tensor]) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB")), index


def by_pillow(image: Image.Image) -> Tensor:
    """A random box, resized."""
    cut = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, random_box(*image.size))
    return torch.from_numpy(np.array(cut)).permute(2, 0, 1).contiguous()


def by_torchvision() -> Callable[[Image.Image], Tensor]:
    """The same by transforms.v2."""
    v2 = import_module("torchvision.transforms.v2")
    whole: Callable[[Image.Image], Tensor] = v2.Compose([v2.RandomResizedCrop(SIZE), v2.PILToTensor()])
    return whole


def write(folder: Path, width: int, height: int, count: int) -> None:
    """JPEG files with as much detail as photographs have: 3.5 bits a pixel."""
    rng = np.random.default_rng(0)
    for n in range(count):
        place = folder / "train" / str(n % 2)
        place.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (height // 16, width // 16, 3), np.uint8)).resize((width, height))
        noise = rng.normal(0, 8, (height, width, 1))
        Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8)).save(place / f"{n}.jpg", quality=90)


def loaders(root: Path) -> dict[str, Loader]:
    """Ours first."""
    data = Images(root=str(root), size=SIZE, crop="random_resized").data("train")
    assert isinstance(data, ImageList)

    def ours(batches: int) -> Iterator[Any]:
        shards = step_shards(0, batches * BATCH, BATCH, BATCH, 1, 0, 1)
        return Feed(data, order=Order(len(data), 0), device=torch.device("cpu"), dtype=None, workers=1).steps(shards)

    def torchs(transform: Callable[[Image.Image], Tensor]) -> Loader:
        files = Files(data.paths, transform)
        return lambda batches: iter(
            DataLoader(files, BATCH, sampler=RandomSampler(files, num_samples=batches * BATCH), num_workers=1)
        )

    found = {"ours": ours, "Pillow by hand, DataLoader": torchs(by_pillow)}
    if find_spec("torchvision"):
        found["torchvision's transforms.v2, DataLoader"] = torchs(by_torchvision())
    return found


def spent() -> float:
    """CPU seconds of the processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def speed(loader: Loader, batches: int) -> float:
    """Images per CPU second of the worker."""
    begin = spent()
    count = sum(1 for _ in loader(batches))
    assert count == batches
    return BATCH * count / (spent() - begin)


def table(record: dict[str, Any]) -> str:
    """The READMEs' table of a record."""
    lines = ["| files | beside | ours to theirs (lowest, highest round) | ours, images per CPU second |", "|---|---|---|---|"]
    for r in record["rows"]:
        ratio = f"{r['ratio']:.2f} ({r['lowest']:.2f}-{r['highest']:.2f})"
        lines += [f"| {r['files']} | {r['beside']} | {ratio} | {r['images_per_s']} |"]
    return "\n".join(lines)


def measured(kind: str) -> list[dict[str, Any]]:
    """The rows of one kind of files."""
    width, height, count, batches = KINDS[kind]
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), width, height, count)
        each = loaders(Path(folder))
        rounds = [{name: speed(loader, batches) for name, loader in each.items()} for _ in range(ROUNDS + 1)][1:]
    rows = []
    for name in list(each)[1:]:
        ratios = sorted(found["ours"] / found[name] for found in rounds)
        mine, other = (round(statistics.median(found[side] for found in rounds)) for side in ("ours", name))
        row = {"files": kind, "beside": name, "images_per_s": mine, "theirs_per_s": other}
        rows.append(
            row | {"ratio": round(statistics.median(ratios), 2), "lowest": round(ratios[0], 2), "highest": round(ratios[-1], 2)}
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure and write the record."""
    torch.set_num_threads(1)
    rows = [row for kind in KINDS for row in measured(kind)]
    record = {"command": "python -m tests.bench.images", "machine": machine(), "rounds": ROUNDS, "batch": BATCH, "rows": rows}
    OUT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
