"""Training on files of tokens: the same losses on any world, and after a resume on another one; what is wrong costs nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.config.errors import UserError
from harness.config.loader import load
from harness.worker import work
from tests.support.processes import run_ranks

pytest.importorskip("transformers")

IDS = np.random.default_rng(0).integers(0, 60, 1001) // 2
GPT2 = ["n_layer=1", "n_embd=16", "n_head=2", "n_positions=16", "vocab_size=32"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two epochs of 63 rows, in batches of 12, on a small GPT-2."""
    IDS[:600].astype(np.uint16).tofile(tmp_path / "train0.bin")
    np.save(tmp_path / "train1.npy", IDS[600:])
    IDS[:100].astype(np.uint16).tofile(tmp_path / "val.bin")
    tree = {
        "recipe": {"use": "tokens", "kind": "gpt2", "overrides": GPT2, "context": 16},
        "batch": {"reference": 12, "total": 12, "micro": 1},
        "optim": {"name": "adamw", "lr": 1e-3},
        "schedule": {"epochs": 2},
        "precision": "fp64",
        "eval": {"every_epochs": 1},
        "watch": {"wandb": "off", "every_steps": 3},
    }
    tree["recipe"] |= {"data": str(tmp_path / "train*"), "valid": str(tmp_path / "val.bin")}  # type: ignore[operator]
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(tree))
    return path


def mix(run: Path, folder: Path) -> None:
    """The same files as two sources that are mixed, in the order of blocks, documents apart, and validated on two sets."""
    tree = json.loads(run.read_text())
    IDS[100:150].astype(np.uint16).tofile(folder / "other.bin")
    tree["recipe"] |= {
        "data": [f"a={folder}/train0.bin", f"b={folder}/train1.npy"],
        "weights": [3, 1],
        "weights_then": ["60: 1, 1"],
        "documents": "masked",
        "eos": 0,
    }
    tree["recipe"]["valid"] = [f"val={folder}/val.bin", f"other={folder}/other.bin"]
    run.write_text(json.dumps(tree | {"data": {"order": "blocks", "block": 4, "window": 3}}))


def told(folder: Path, event: str, name: str) -> list[Any]:
    """One number of all lines of a kind."""
    lines = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    return [line[name] for line in lines if line["event"] == event]


@pytest.mark.parametrize("mixed", [False, True])
def test_losses_are_the_same_on_every_world_and_over_every_resume(mixed: bool, run: Path, tmp_path: Path) -> None:
    """One rank; three that are simulated; one, then two real ones, then four simulated ones."""
    if mixed:
        mix(run, tmp_path)
    folders = [tmp_path / name for name in ("one", "three", "many")]
    assert work(load(run, {"run.dir": str(folders[0])}), "run", {}) == 0
    assert work(load(run, {"run.dir": str(folders[1])}), "run", {}, simulate=3) == 0
    begun = {"run.dir": str(folders[2]), "run.stop_after_steps": "3"}
    assert work(load(run, begun), "run", {}) == 0
    flags = [part for name, value in begun.items() for part in (f"--{name}", value)]
    run_ranks(2, ["harness", str(run), *flags], tmp_path)
    assert work(load(run, {"run.dir": str(folders[2])}), "run", {}, simulate=4) == 0
    (loss, *others) = [told(folder, "step", "train/loss") for folder in folders]
    assert len(loss) == -(-2 * 63 // 12)
    if mixed:
        assert abs(told(folders[2], "window", "data/a_samples")[-1] - 0.75 * 60 - 0.5 * 66) < 2
    else:
        assert sum(told(folders[0], "step", "batch/items")) == 2 * (len(IDS) - 2)
    for other in others:
        assert other == pytest.approx(loss, rel=1e-6), "losses are summed in float32"
    for name in ("eval/loss", "eval/val/loss", "eval/other/loss") if mixed else ("eval/loss",):
        first, *others = [told(folder, "eval", name) for folder in folders]
        assert len(first) == 2
        for other in others:
            assert other == pytest.approx(first, rel=1e-6)


def test_a_run_does_not_go_on_with_other_tokens(run: Path, tmp_path: Path) -> None:
    flags = {"run.dir": str(tmp_path / "run"), "run.stop_after_steps": "2"}
    assert work(load(run, flags), "run", {}) == 0
    before = (tmp_path / "run" / "events.jsonl").read_bytes()
    (IDS[:600] ^ 1).astype(np.uint16).tofile(tmp_path / "train0.bin")
    with pytest.raises(UserError, match=r"run.dir: .* was trained on other data of as many samples"):
        work(load(run, flags), "run", {})
    assert (tmp_path / "run" / "events.jsonl").read_bytes() == before
    with pytest.raises(UserError, match=r"recipe.data: .* holds the id 29, and the vocabulary has 20"):
        work(load(run, flags | {"recipe.overrides": "[vocab_size=20, n_layer=1]", "run.dir": str(tmp_path / "new")}), "run", {})
    assert not (tmp_path / "new").exists()
