"""The running average of the weights: the formula, the same on every layout, spared by a bad step, saved, evaluated, exported."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from harness.config.errors import UserError
from harness.config.loader import decode
from harness.data.batch_tree import move
from harness.data.feed import Micro, Table
from harness.data.sample_order import Chunk
from harness.engine.factory import open_engine
from harness.engine.training_engine import TrainingEngine
from harness.plan.plan import plan
from harness.plan.world import World
from harness.recipes.base import load_recipe
from launch.cli import main
from tests.dist.workers.averages import RECIPE, STEPS, config, told
from tests.support.processes import run_ranks


def opened(folder: Path, **sections: dict[str, Any]) -> tuple[TrainingEngine, Micro]:
    """An engine on one rank, and a batch for it."""
    c = decode(config(folder, "ddp", **sections))
    recipe = load_recipe(c.recipe)
    engine = open_engine(c, plan(c, World(1, device="cpu")), recipe, cpu=True)
    assert isinstance(engine, TrainingEngine)
    data = recipe.data("train")
    assert isinstance(data, Table)
    return engine, Micro(move(data.take(torch.arange(32)), engine.device, engine.dtype), Chunk(0, 32))


def averages(engine: TrainingEngine) -> dict[str, torch.Tensor]:
    """Copies of what is kept."""
    assert engine.average is not None
    return {name: kept.clone() for name, kept in engine.average}


def test_it_is_the_average_of_the_weights_after_each_step_at_rho_to_the_k(tmp_path: Path) -> None:
    engine, micro = opened(tmp_path)
    assert engine.plan.ema == pytest.approx(0.95**2)
    expected = {name: w.detach().clone() for name, w in engine.model.named_parameters()}
    for _ in range(5):
        engine.step([micro], 0.1, False)
        expected = {n: 0.95**2 * expected[n] + (1 - 0.95**2) * w.detach() for n, w in engine.model.named_parameters()}
    for name, kept in averages(engine).items():
        torch.testing.assert_close(kept, expected[name], rtol=1e-12, atol=1e-14)


def test_a_step_that_is_not_finite_leaves_it_alone(tmp_path: Path) -> None:
    engine, micro = opened(tmp_path)
    engine.step([micro], 0.1, False)
    before = averages(engine)
    hook = engine.model.register_forward_hook(lambda _m, _a, out: out * float("nan"))
    engine.step([micro], 0.1, False)
    hook.remove()
    for name, kept in averages(engine).items():
        assert torch.equal(kept, before[name])
    engine.step([micro], 0.1, False)
    assert all(k.isfinite().all() and not torch.equal(k, before[n]) for n, k in averages(engine).items())


def test_the_weights_are_back_after_they_were_swapped(tmp_path: Path) -> None:
    engine, micro = opened(tmp_path)
    engine.step([micro], 0.1, False)
    weights, kept = [w.detach().clone() for w in engine.model.parameters()], averages(engine)
    with engine.averaged():
        for name, w in engine.model.named_parameters():
            assert torch.equal(w, kept[name])
    assert all(torch.equal(w, was) for w, was in zip(engine.model.parameters(), weights, strict=True))
    assert all(torch.equal(k, kept[n]) for n, k in averages(engine).items())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """One rank without a stop; two ranks of ddp and fsdp, each of which resumes from the other's checkpoint, and of zero0."""
    folder = tmp_path_factory.mktemp("averages")
    (folder / "normed.py").write_text(RECIPE)
    run_ranks(2, ["tests.dist.workers.averages", str(folder), "ddp,fsdp", "zero0"], folder)
    results: dict[str, dict[str, Any]] = json.loads((folder / "told-2.json").read_text())
    return results | {"whole": told(config(folder / "whole", "ddp"))}


BACKENDS = [("ddp", 1e-9), ("fsdp", 1e-9), ("zero0", 1e-4)]
"""And how near to one rank: zero0 computes in float32."""


@pytest.mark.parametrize(("backend", "near"), BACKENDS)
def test_two_ranks_of_every_backend_and_a_resume_keep_the_average_of_one(
    runs: dict[str, dict[str, Any]], backend: str, near: float
) -> None:
    whole, here = runs["whole"]["eval"], runs[backend]["eval"]
    for samples in ("640", "960", str(32 * STEPS)):
        for name in ("eval/loss", "eval/ema_loss", "eval/ema_accuracy_pct"):
            assert here[samples][name] == pytest.approx(whole[samples][name], rel=near), (samples, name)
    assert whole["640"]["eval/ema_loss"] != whole["640"]["eval/loss"]
    assert whole[str(32 * STEPS)]["eval/ema_loss"] < 0.8 * whole["320"]["eval/ema_loss"], "nothing was learnt"


@pytest.mark.parametrize(("backend", "near"), [("ddp", 1e-6), ("zero0", 2e-3)])
def test_two_ranks_agree_with_one_on_the_sharpness(runs: dict[str, dict[str, Any]], backend: str, near: float) -> None:
    """Of 50 samples, which two ranks hold unequally. In float32 the iteration may stop one product earlier or later."""
    whole, here = runs["whole"]["eval"], runs[backend]["eval"]
    assert here["320"]["eval/sharpness"] == pytest.approx(whole["320"]["eval/sharpness"], rel=near)
    assert whole["320"]["eval/sharpness"] != whole["960"]["eval/sharpness"]


@pytest.mark.parametrize(("backend", "near"), BACKENDS)
def test_batchnorm_s_statistics_are_averaged_along_and_saved(runs: dict[str, dict[str, Any]], backend: str, near: float) -> None:
    """One step more, from the checkpoint: both evaluations go on from where they were."""
    before = runs[f"normed {backend}"]["eval"][str(32 * STEPS)]
    after = runs[f"normed {backend} again"]["eval"][str(32 * (STEPS + 1))]
    assert after["eval/ema_loss"] == pytest.approx(before["eval/ema_loss"], rel=0.1)
    assert before["eval/ema_loss"] < 1.5
    reference = runs["normed ddp"]["eval"][str(32 * STEPS)]
    assert before["eval/ema_loss"] == pytest.approx(reference["eval/ema_loss"], rel=near)


def test_a_checkpoint_without_an_average_begins_one_and_one_that_is_dropped_is_said(tmp_path: Path) -> None:
    tree = config(tmp_path / "run", "ddp")
    told(tree | {"optim": tree["optim"] | {"ema": None}}, 10)
    assert "it has no average of the weights, so that begins here" in told(tree, 5)["notices"][0]
    assert "its average of the weights is dropped" in told(tree | {"optim": tree["optim"] | {"ema": None}}, 5)["notices"][0]


def test_it_is_exported_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    tree = config(run, "ddp")
    told(tree, 10)
    (run / "run.yaml").write_text(yaml.safe_dump(tree))
    for flags, name in (([], "last"), (["--ema"], "ema")):
        assert main(["export", str(run), "--out", str(tmp_path / f"{name}.safetensors"), *flags]) == 0
    last, ema = (load_file(tmp_path / f"{name}.safetensors") for name in ("last", "ema"))
    assert set(last) == set(ema)
    assert not any(torch.equal(last[n], ema[n]) for n in last)
    bare = config(tmp_path / "bare", "ddp", optim={"ema": None})
    told(bare, 5)
    (tmp_path / "bare" / "run.yaml").write_text(yaml.safe_dump(bare))
    assert main(["export", str(tmp_path / "bare"), "--out", str(tmp_path / "x.safetensors"), "--ema"]) == 2
    assert "keeps no average of its weights" in capsys.readouterr().err


def test_backends_that_move_the_weights_themselves_refuse_it(tmp_path: Path) -> None:
    for backend in ("zero1", "zero2", "zero3"):
        c = decode(config(tmp_path, backend) | {"precision": "fp32"})
        with pytest.raises(UserError, match=f"optim.ema: is 0.95, but {backend} moves its weights itself"):
            plan(c, World(2, device="cpu"))


def test_a_batch_that_grows_shortens_it_in_steps() -> None:
    c = decode(config(Path("x"), "ddp"))
    planned = plan(c, World(1, device="cpu"))
    assert planned.at_batch(128).ema == pytest.approx(0.95**8)
    assert "rho^k" in planned.sources["ema"]
