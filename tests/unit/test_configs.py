"""The shipped run files decode, plan on any world, and have the header that tells what to expect."""

import json
import math
import os
import sysconfig
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from harness.checkpoint.reader import newest
from harness.config.errors import UserError
from harness.config.loader import load
from harness.config.schema import RecipeConfig
from harness.plan.plan import plan
from harness.plan.world import World
from harness.recipes.base import load_recipe
from harness.recipes.contract import train_split
from harness.recipes.images import Images
from harness.telemetry.events import Stepped
from harness.tools.export import export
from harness.training.loop import train
from harness.worker import work
from launch.cli import main
from tests.support.processes import ROOT

FILES = sorted((ROOT / "configs").glob("*.yaml"))
SCHEMA = ROOT / "configs" / "run.schema.json"
FASHION = Path("/usr/share/datasets/fashion-mnist")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_each_run_file_plans_where_it_was_tuned_and_on_64_ranks_and_says_what_to_expect(path: Path) -> None:
    config = load(path)
    assert config.batch.per_gpu is not None
    tuned = World(config.batch.reference // config.batch.per_gpu)
    one, many = plan(config, tuned), plan(config, World(64))
    assert one.ratio == 1
    assert not one.warnings or one.rule == "adam"
    assert many.global_batch == 64 * config.batch.per_gpu
    assert many.total_samples == one.total_samples
    header = path.read_text().lower().partition("\nrecipe:")[0]
    assert "widebatch" in header
    assert "expect" in header
    assert all(line.startswith("#") for line in header.splitlines())


def test_the_command_lists_each_with_what_it_trains(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [path.stem for path in FILES]
    assert all(line.endswith(".") and len(line.split()) > 5 for line in lines), lines


@pytest.mark.parametrize(("names", "copied"), [([], FILES), (["digits"], [ROOT / "configs" / "digits.yaml"])])
def test_the_command_copies_them_with_the_schema_that_they_name(names: list[str], copied: list[Path], tmp_path: Path) -> None:
    for _ in range(2):  # what is there already, unchanged, is no obstacle
        assert main(["configs", *names, "--to", str(tmp_path / "mine")]) == 0
    texts = {path.name: path.read_text() for path in (tmp_path / "mine").iterdir()}
    assert texts == {path.name: path.read_text() for path in [*copied, SCHEMA]}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["configs", "digits"], "--to: is not given; add the folder to copy to, such as --to configs"),
        (["configs", "digit", "--to", "new"], "NAME: 'digit' is not a run file of the package; did you mean digits?"),
        (["configs", "--to", "."], "--to: digits.yaml exists with different content; remove it, or give another folder"),
        (["configs", "--to", "digits.yaml"], "--to: digits.yaml cannot be made (File exists)"),
    ],
)
def test_the_command_changes_nothing_where_it_cannot_copy(
    argv: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("digits.yaml").write_text("mine")
    assert main(argv) == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")
    assert [path.name for path in tmp_path.iterdir()] == ["digits.yaml"]
    assert Path("digits.yaml").read_text() == "mine"


@pytest.mark.skipif(not FASHION.exists() and "CI" not in os.environ, reason="Debian package dataset-fashion-mnist is not installed")
def test_debian_s_fashion_mnist_is_read_as_it_is() -> None:
    images = Images(root=str(FASHION))
    assert len(images.data("train")) == 60_000
    assert len(images.data("valid")) == 10_000


LLAMA = "[hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2]"
SMALL: dict[str, dict[str, str]] = {
    "digits": {},
    "bytes_lm": {"recipe.max_bytes": "20000"},
    "hf_causal_lm": {"recipe.max_bytes": "20000", "recipe.overrides": LLAMA},
    "gpt2_small": {
        "recipe.overrides": "[n_layer=2, n_embd=16, n_head=2, n_positions=32]", "recipe.tokenizer": "null", "recipe.suffix": ".py",
        "recipe.files": sysconfig.get_paths()["stdlib"] + "/json", "recipe.context": "32", "compute.compile": "false",
    },
    "gpt2_tokens": {
        "recipe.overrides": "[n_layer=2, n_embd=16, n_head=2, n_positions=32, vocab_size=64]", "recipe.data": "TOKENS",
        "recipe.valid": "null", "eval.every_samples": "null", "recipe.context": "32", "compute.compile": "false",
    },
    "cifar10": {"recipe.root": "PICTURES", "recipe.workers": "1"},
    "imagenet_resnet50": {"recipe.root": "PICTURES", "recipe.net": "resnet8", "recipe.size": "24", "recipe.workers": "0"},
}  # fmt: skip
"""What makes a run file small, and its data to be had here."""


def pictures(folder: Path) -> Path:
    """Two classes of four grey pictures, to train and to validate."""
    for split, label in product(("train", "valid"), ("dark", "light")):
        (folder / split / label).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (40, 32), (number, number, number + 200 * (label == "light"))).save(
                folder / split / label / f"{number}.png"
            )
    return folder


def tokens(folder: Path) -> Path:
    """A file of tokens."""
    folder.mkdir()
    (np.arange(1000) % 64).astype(np.uint16).tofile(folder / "a.bin")
    return folder


@pytest.mark.parametrize("name", list(SMALL))
def test_it_trains_in_small(name: str, tmp_path: Path) -> None:
    """Two steps of the run file's own recipe, optimizer and schedule."""
    made = {"PICTURES": pictures, "TOKENS": tokens}
    flags = {k: str(made[v](tmp_path / "data")) if v in made else v for k, v in SMALL[name].items()}
    flags |= {"batch.per_gpu": "4", "batch.reference": "4", "batch.micro": "auto", "recipe.samples": "null", "watch.wandb": "off"}
    config = load(ROOT / "configs" / f"{name}.yaml", flags | {"run.stop_after_steps": "2"})
    size = len(train_split(load_recipe(config.recipe), 0))
    steps = [e for e in train(config, plan(config, World(1, device="cpu"), size), cpu=True) if isinstance(e, Stepped)]
    assert [e.samples for e in steps] == [4, 8]
    assert all(math.isfinite(e.metrics["train/loss"]) and e.metrics["train/grad_norm"] > 0 for e in steps)


def test_a_model_of_hugging_face_goes_out_and_comes_back_from_its_folder(tmp_path: Path) -> None:
    """What was trained from a configuration is exported as transformers reads it, and is a local folder for the next run."""
    tree = {
        "recipe": {"use": "causal_lm", "kind": "gpt2", "max_bytes": 20_000, "context": 16},
        "batch": {"reference": 8, "total": 8},
        "optim": {"name": "adamw", "lr": 1e-3},
        "schedule": {"samples": 80},
        "watch": {"wandb": "off"},
        "run": {"dir": str(tmp_path / "run"), "stop_after_steps": 3},
    }
    tree["recipe"]["overrides"] = ["n_layer=2", "n_embd=16", "n_head=2", "n_positions=16"]  # type: ignore[index]
    (tmp_path / "run.yaml").write_text(json.dumps(tree))
    assert work(load(tmp_path / "run.yaml"), "run", {}) == 0
    export(load(tmp_path / "run" / "run.yaml"), tmp_path / "run", tmp_path / "model")
    made = load_recipe(RecipeConfig(use="causal_lm", knobs={"folder": str(tmp_path / "model"), "max_bytes": 20_000, "context": 16}))
    weights = dict(made.model().named_parameters())
    saved = newest(str(tmp_path / "run" / "checkpoints"))[0]
    assert saved is not None
    assert all(torch.equal(weights[n], saved.tensors.whole(f"model/{n}")) for n in weights)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({}, "recipe.folder: is None and recipe.kind None; give exactly one of the two"),
        ({"kind": "gpt9"}, "recipe.kind: 'gpt9': "),
        ({"kind": "gpt2", "overrides": ["n_layer"]}, "recipe.overrides: 'n_layer' is not NAME=VALUE"),
        ({"kind": "gpt2", "tokenizer": "/none"}, "recipe.tokenizer: '/none' is not a folder"),
        ({"folder": "/none"}, "recipe.folder: '/none': "),
    ],
)
def test_what_is_no_model_of_hugging_face_is_said(knobs: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(RecipeConfig(use="causal_lm", knobs=knobs)).model()
    assert str(caught.value).startswith(said)
