"""The shipped run files decode, plan on any world, and have the header that tells what to expect."""

import json
import math
import os
import sysconfig
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from harness.engine.checkpoint import newest
from harness.engine.export import export
from harness.parts.recipe import load_recipe
from harness.plan.config import RecipeConfig
from harness.plan.decode import load
from harness.plan.errors import UserError
from harness.plan.plan import plan
from harness.plan.world import World
from harness.recipes.images import Images
from harness.stats.events import Stepped
from harness.train import train
from harness.worker import work
from tests.dist.processes import ROOT

FILES = sorted((ROOT / "configs").glob("*.yaml"))
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


@pytest.mark.parametrize("name", list(SMALL))
def test_it_trains_in_small(name: str, tmp_path: Path) -> None:
    """Two steps of the run file's own recipe, optimizer and schedule."""
    flags = {k: str(pictures(tmp_path / "pictures")) if v == "PICTURES" else v for k, v in SMALL[name].items()}
    flags |= {"batch.per_gpu": "4", "batch.reference": "4", "batch.micro": "auto", "recipe.samples": "null", "watch.wandb": "off"}
    config = load(ROOT / "configs" / f"{name}.yaml", flags | {"run.stop_after_steps": "2"})
    size = len(load_recipe(config.recipe).data("train"))
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
    export(tmp_path / "run", tmp_path / "model")
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
        ({"kind": "gpt2", "overrides": ["n_layer"]}, "recipe.overrides: 'n_layer' is no NAME=VALUE"),
        ({"kind": "gpt2", "tokenizer": "/none"}, "recipe.tokenizer: '/none' is no folder"),
        ({"folder": "/none"}, "recipe.folder: '/none': "),
    ],
)
def test_what_is_no_model_of_hugging_face_is_said(knobs: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(RecipeConfig(use="causal_lm", knobs=knobs)).model()
    assert str(caught.value).startswith(said)
