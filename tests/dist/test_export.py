"""Weights go out of a run whole, by name, whatever the ranks and the backend that wrote them; and into Hugging Face's model."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harness.config.schema import Knob, RecipeConfig
from harness.data.feed import Table
from harness.recipes.base import load_recipe
from launch.cli import main
from tests.support.processes import run_ranks

KNOBS: dict[str, Knob] = {"width": 32, "depth": 2, "heads": 2, "context": 16, "max_bytes": 20_000}
RECIPE = RecipeConfig(use="bytes_lm", knobs=KNOBS)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on two ranks of zero3."""
    folder = tmp_path_factory.mktemp("export")
    tree = {
        "recipe": {"use": "bytes_lm", **KNOBS},
        "batch": {"reference": 16, "total": 16},
        "optim": {"name": "adamw", "lr": 0.003},
        "schedule": {"samples": 160},
        "backend": {"name": "zero3", "deepspeed": {"zero_optimization": {"stage3_param_persistence_threshold": 0}}},
        "watch": {"wandb": "off"},
        "run": {"dir": str(folder / "run")},
    }
    (folder / "run.yaml").write_text(json.dumps(tree))
    run_ranks(2, ["harness", str(folder / "run.yaml")], folder)
    return folder / "run"


def logits(weights: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """What the recipe's model says with these weights."""
    model = load_recipe(RECIPE).model()
    model.load_state_dict(weights)
    out: torch.Tensor = model(tokens)
    return out


def test_the_file_holds_the_trained_model(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--out", str(tmp_path / "model.safetensors")]) == 0
    assert "of samples-000000000160, step 10" in capsys.readouterr().out
    weights = load_file(tmp_path / "model.safetensors")
    end = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()][-1]
    data = load_recipe(RECIPE).data("valid")
    assert isinstance(data, Table)
    rows = data.take(torch.arange(len(data)))
    target = rows["tokens"][:, 1:].long().masked_fill(torch.arange(1, 17) >= rows["length"][:, None], -100)
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(logits(weights, rows["tokens"][:, :-1].long()).flatten(0, 1), target.flatten())
    assert float(loss) == pytest.approx(end["eval/loss"], rel=1e-5)


def test_hugging_face_reads_the_folder_and_says_the_same(run: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    assert main(["export", str(run), "--out", str(tmp_path / "hf")]) == 0
    assert main(["export", str(run), "--out", str(tmp_path / "model.safetensors")]) == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    tokens = torch.randint(0, 256, (2, 16))
    with torch.no_grad():
        ours = logits(load_file(tmp_path / "model.safetensors"), tokens)
        torch.testing.assert_close(theirs(tokens).logits, ours, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("which", "out", "said"),
    [
        ("no", "a.safetensors", "export: {no} is not a run folder"),
        ("run", "", "--out: {out} is there already"),
    ],
)
def test_a_mistake_is_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], which: str, out: str, said: str
) -> None:
    folder = run if which == "run" else tmp_path / "no"
    assert main(["export", str(folder), "--out", str(tmp_path / out)]) == 2
    assert said.format(no=tmp_path / "no", out=tmp_path) in capsys.readouterr().err
