"""Frozen weights keep their type and stay out of checkpoints, which know them again; a run on another base is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from harness.checkpoint.reader import newest
from harness.checkpoint.tensor_slices import SliceReader, whole
from harness.config.errors import UserError
from harness.config.loader import decode
from harness.engine.factory import open_engine
from harness.engine.initial_model import initial_model
from harness.engine.training_engine import TrainingEngine
from harness.plan.plan import plan
from harness.plan.world import World
from harness.tools.export import export
from harness.tools.verify import verify
from tests.dist.workers.kept_types import BACKENDS, STORED, Kept, halves, run, tree
from tests.support.processes import run_ranks

TEACHERS = [f"teacher {b}" for b in BACKENDS if b != "zero3"]
TRAINED = 16 * 16 + 16 + 16 + 1
BASE = 4 * 16 + 16


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What comes on each backend, on two ranks."""
    out = tmp_path_factory.mktemp("types")
    run_ranks(2, ["tests.dist.workers.kept_types", str(out)], out)
    found: dict[str, Any] = json.loads((out / "found.json").read_text())
    return found | {"out": out}


def names(folder: Path) -> set[str]:
    """The weights in the newest checkpoint of a run."""
    found, _ = newest(str(folder / "checkpoints"))
    assert found is not None
    return {name.removeprefix("model/") for name in found.tensors if name.startswith("model/")}


@pytest.mark.parametrize("name", [*BACKENDS, *TEACHERS])
def test_a_run_on_a_frozen_base_goes_on_to_the_bit(name: str, ranks: dict[str, Any]) -> None:
    found = ranks[name]
    assert found["whole"]["refused"] == found["first"]["refused"] == found["then"]["refused"] == ""
    assert found["first"]["losses"] + found["then"]["losses"] == found["whole"]["losses"]
    assert found["then"]["eval"][-1] == found["whole"]["eval"][-1]
    for part in ("base.weight", "base.bias"):
        assert found["whole"]["types"][part] == "torch.bfloat16"
    assert found["whole"]["types"]["adapter.weight"] == "torch.float32"
    teacher = {"teacher.weight", "teacher.bias"} if name.startswith("teacher") else set()
    saved = {"adapter.weight", "adapter.bias", "out.weight", "out.bias", "scale"}
    assert names(ranks["out"] / name.replace(" ", "-")) == saved | teacher, "only what is trained, or moved"
    others = 16 * 16 + 16 if teacher else 0
    assert found["whole"]["parameters"] == [[TRAINED + BASE + others, TRAINED]]


def test_zero3_which_would_have_to_send_them_says_so(ranks: dict[str, Any]) -> None:
    said = ranks["quantised zero3"]["refused"]
    assert said.startswith(
        "backend.name: is zero3, which must gather weights, and these have types that gloo and NCCL cannot send: "
        "quantised.0 (torch.uint16)"
    )


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "zero3"])
def test_frozen_weights_may_be_of_types_that_cannot_be_sent(backend: str, ranks: dict[str, Any]) -> None:
    found = ranks[f"quantised {backend}"]
    assert found["refused"] == ""
    assert found["losses"] == pytest.approx(ranks[backend]["whole"]["losses"][:2], rel=1e-6)
    assert [found["types"][f"quantised.{i}"] for i in range(len(STORED))] == [str(kind) for kind in STORED]


@pytest.mark.parametrize("name", [*BACKENDS, *TEACHERS])
def test_another_base_is_refused(name: str, ranks: dict[str, Any]) -> None:
    said = ranks[name]["other"]["refused"]
    assert said.startswith("recipe.use: the frozen weight base.weight is not the one that ")
    assert said.endswith("use that base model again, or give another run.dir")


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_each_backend_goes_on_from_what_ddp_saved(backend: str, ranks: dict[str, Any]) -> None:
    first = 10 + 2 * BACKENDS[1:].index(backend)
    whole = ranks["ddp"]["whole"]["losses"]
    assert ranks[f"crossed {backend}"]["losses"] == pytest.approx(whole[first : first + 2], rel=1e-4)


def test_one_process_and_export(tmp_path: Path) -> None:
    found = halves(tmp_path / "run")
    assert found["first"]["losses"] + found["then"]["losses"] == found["whole"]["losses"]
    assert found["other"]["refused"].startswith("recipe.use: the frozen weight base.weight is not the one")
    export(decode(tree()), tmp_path / "run", tmp_path / "out.safetensors")
    weights = load_file(tmp_path / "out.safetensors")
    assert weights["base.weight"].dtype == torch.bfloat16
    model, recipe = initial_model(Kept(), 0), Kept()
    model.load_state_dict(weights)
    loss, count = recipe.loss(model.eval(), recipe.data("valid").take(torch.arange(64)))
    assert loss.item() / count == pytest.approx(found["then"]["eval"][-1], rel=1e-5)


def test_an_export_over_another_base_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "run", 2)
    monkeypatch.setenv("BASE", "2")
    with pytest.raises(UserError, match=r"the frozen weight base.weight .* is not the one that the run was trained with"):
        export(decode(tree()), tmp_path / "run", tmp_path / "out.safetensors")


def test_other_trained_weights_are_refused(tmp_path: Path) -> None:
    run(tmp_path / "run", 2)
    said = run(tmp_path / "run", recipe={"thawed": True})["refused"]
    assert said.startswith("recipe.use: base.bias was frozen in ")


def test_a_checkpoint_of_an_earlier_version_has_the_frozen_weights_and_they_are_taken() -> None:
    config = decode(tree())
    engine = open_engine(config, plan(config, World(1, device="cpu"), 64), Kept(), cpu=True)
    assert isinstance(engine, TrainingEngine)
    held = {p.name: p for p in engine.pieces()}
    base = torch.full((16, 4), 0.5, dtype=torch.bfloat16)
    bias = torch.zeros(16, dtype=torch.bfloat16)
    engine.load(SliceReader.of([*held.values(), whole("model/base.weight", base), whole("model/base.bias", bias)]))
    assert torch.equal(engine.model.get_parameter("base.weight"), base)
    assert {p.name for p in engine.pieces()} == {*held, "model/base.weight", "model/base.bias"}


def test_verify_knows_it() -> None:
    found = verify(decode(tree()), World(1, device="cpu"), cpu=True)
    assert [f for f in found if f.verdict == "differs"] == []
