"""Training on data in every format: the same samples in a step on any world, and none lost or repeated over a resume."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.config.loader import load
from harness.data.open_dataset import open_dataset
from harness.data.training_order import training_order
from harness.data.workers import Batched
from harness.recipes.base import Recipe, Split, Sum
from harness.worker import work
from tests.support.data_files import KINDS, ROWS, column
from tests.support.processes import ROOT, run_ranks
from tests.support.tiny_llama import write_conversations, write_llama

BATCH, EPOCHS = 12, 3


class Together:
    """Samples of all formats at once, which must be the same."""

    def __init__(self, sources: dict[str, Any]) -> None:
        self.sources = sources

    def __len__(self) -> int:
        return len(next(iter(self.sources.values())))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        (x,) = {float(column(source[index], "x")) for source in self.sources.values()}
        return {"x": torch.tensor([x], dtype=torch.float64)}

    def __getitems__(self, indices: list[int]) -> list[dict[str, Tensor]]:
        singles = [self[index] for index in indices]
        for source in self.sources.values():
            rows = source.__getitems__(indices) if isinstance(source, Batched) else [source[i] for i in indices]
            assert [float(column(row, "x")) for row in rows] == [one["x"].item() for one in singles]
        return singles


@dataclass(frozen=True)
class Squares(Recipe):
    """A loss that is the same whatever the weights are: the squares of the samples' numbers."""

    folder: str = ""

    def model(self) -> nn.Module:
        """[n, 1] -> [n, 1]."""
        return nn.Linear(1, 1, bias=False)

    def data(self, split: Split) -> Together | None:
        """Every format that is there."""
        if split == "valid":
            return None
        return Together({path.name: open_dataset(json.loads(path.read_text())) for path in Path(self.folder).glob("*.given")})

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Sum:
        """The sum of the squares."""
        return (batch["x"] * 8).square().sum() + 0 * model(batch["x"]).sum(), len(batch["x"])


def lines(folder: Path, event: str) -> list[dict[str, Any]]:
    """The lines of a kind in a journal."""
    return [line for line in map(json.loads, (folder / "events.jsonl").read_text().splitlines()) if line["event"] == event]


def on_every_world(path: Path, folder: Path) -> list[list[dict[str, Any]]]:
    """The steps of one rank; of three that are simulated; of two real ones that four take up in mid-epoch, and one after those."""
    folders = [folder / name for name in ("one", "three", "two_four_one")]
    assert work(load(path, {"run.dir": str(folders[0])}), "run", {}) == 0
    assert work(load(path, {"run.dir": str(folders[1])}), "run", {}, simulate=3) == 0
    for ranks in (2, 4):
        run_ranks(ranks, ["harness", str(path), "--run.dir", str(folders[2]), "--run.stop_after_steps", "3"], folder)
        assert lines(folders[2], "start")[-1]["plan"]["world_size"] == ranks
    assert work(load(path, {"run.dir": str(folders[2])}), "run", {}) == 0
    return [lines(folder, "step") for folder in folders]


def run_file(folder: Path, recipe: dict[str, Any]) -> Path:
    """A run in float64 on these data."""
    tree = {
        "recipe": recipe,
        "batch": {"reference": BATCH, "total": BATCH, "micro": 1},
        "optim": {"name": "sgd", "lr": 1e-3},
        "schedule": {"epochs": EPOCHS},
        "precision": "fp64",
        "watch": {"wandb": "off"},
    }
    path = folder / "run.yaml"
    path.write_text(json.dumps(tree))
    return path


def test_every_format_gives_the_same_samples_on_every_world(tmp_path: Path) -> None:
    """All of them in one run, of which each must read the samples of the order, in every step."""
    pytest.importorskip("datasets")
    for kind, write in KINDS.items():
        (tmp_path / kind).mkdir()
        (tmp_path / f"{kind}.given").write_text(json.dumps(write(tmp_path / kind)))
    path = run_file(tmp_path, {"use": f"{__file__}:Squares", "folder": str(tmp_path)})
    found = on_every_world(path, tmp_path)
    order = training_order([{}] * ROWS, load(path))
    ids = [order.take(start, min(start + BATCH, EPOCHS * ROWS)).tolist() for start in range(0, EPOCHS * ROWS, BATCH)]
    for steps_ in found:
        assert [s["train/loss"] for s in steps_] == pytest.approx([sum(i * i for i in part) / len(part) for part in ids], rel=1e-6)
    assert Counter(i for part in ids for i in part) == Counter(dict.fromkeys(range(ROWS), EPOCHS))


def alike(path: Path, folder: Path) -> list[dict[str, Any]]:
    """The steps of a run, the same on every world."""
    one, *others = on_every_world(path, folder)
    for other in others:
        assert [s["batch/items"] for s in other] == [s["batch/items"] for s in one]
        assert [s["train/loss"] for s in other] == pytest.approx([s["train/loss"] for s in one], rel=1e-6)
    return one


def test_packed_conversations_train_alike_on_every_world(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    write_llama(tmp_path / "llama")
    write_conversations(tmp_path / "chat.jsonl")
    files = {"folder": str(tmp_path / "llama"), "files": str(tmp_path / "chat.jsonl")}
    alike(run_file(tmp_path, {"use": "chat", **files, "context": 64, "packing": "best_fit"}), tmp_path)
    (told,) = [line["message"] for line in lines(tmp_path / "one", "notice") if line.get("code") == "data"]
    assert told.startswith("40 conversations are packed into ")


def test_losses_by_source_are_the_same_on_two_ranks(tmp_path: Path) -> None:
    """With weights in shards, where a rank that has no sample of a source must take part in its passes all the same."""
    path = run_file(tmp_path, {"use": f"{ROOT}/tests/unit/test_mixtures.py:Lines"})
    more = ["--watch.loss_by_source", "true", "--watch.every_steps", "3", "--batch.micro", "2"]
    config = load(path, {"watch.loss_by_source": "true", "watch.every_steps": "3", "run.dir": str(tmp_path / "one")})
    assert work(config, "run", {}) == 0
    run_ranks(2, ["harness", str(path), *more, "--backend.name", "fsdp", "--run.dir", str(tmp_path / "two")], tmp_path)
    one, two = (
        [line[f"data/{name}_loss"] for line in lines(tmp_path / run, "window") for name in ("up", "down")] for run in ("one", "two")
    )
    assert len(one) > 10
    assert two == pytest.approx(one, rel=1e-6)
