"""The same run on another backend: the losses, rates and checkpoints of ddp, where weights and moments lie in shards."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from harness.config.errors import UserError
from harness.config.loader import decode
from harness.modeling.optimizer import build_optimizer
from harness.plan.plan import plan
from harness.plan.world import World
from harness.recipes.base import load_recipe
from tests.dist.workers.backends import FIRST, SECOND
from tests.dist.workers.layouts import STEPS, config
from tests.support.processes import run_ranks

Told = dict[str, Any]
LIMITS = {"sgd": 1e-5, "adamw": 1e-4, "bf16": 2e-2, "fp64": 1e-10}
UNITS = 3
"""What fsdp gathers one by one: two blocks, and the rest."""


STAGES = {"ddp": 1, "fsdp": 2, "zero": 2, "options": 2, "nodes": 4, "back": 1}
"""The launches, and the ranks of each. Each begins with what the ones before left."""
ON_TWO = ("fsdp", "zero0", "zero1", "zero2", "zero3")


def write_texts(folder: Path) -> None:
    """A few files of text, with lengths that leave a short row at the end of each."""
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.py").write_text(" ".join(str(i * i % (97 + number)) for i in range(1500 + 311 * number)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Told]]:
    """What each run said, by stage and name."""
    folder = tmp_path_factory.mktemp("backends")
    texts = folder / "texts"
    write_texts(texts)
    for stage, ranks in STAGES.items():
        run_ranks(ranks, ["tests.dist.workers.backends", stage, str(folder), str(texts)], folder)
    return {stage: json.loads((folder / f"{stage}.json").read_text()) for stage in STAGES}


def on_two(runs: dict[str, dict[str, Told]], backend: str, run: str) -> Told:
    """What a run said on two ranks."""
    return runs["zero"][f"{backend} {run}"] if backend.startswith("zero") else runs[backend][run]


def losses(told: Told, first: int = 0) -> list[float]:
    """Losses per step from step `first`."""
    return [s["train/loss"] for s in told["steps"][first:]]


PARITY = [(b, run) for b in ON_TWO for run in LIMITS if not (b.startswith("zero") and run == "fp64")] + [
    (f"zero{stage}", "offload") for stage in (1, 2, 3)
]


@pytest.mark.parametrize(("backend", "run"), PARITY)
def test_two_ranks_of_every_backend_tell_the_losses_of_ddp_on_one(runs: dict[str, dict[str, Told]], backend: str, run: str) -> None:
    here = on_two(runs, backend, run)
    run = "adamw" if run == "offload" else run
    reference = runs["ddp"][run]
    assert len(here["steps"]) == STEPS
    assert losses(here) == pytest.approx(losses(reference), rel=LIMITS[run])
    assert here["eval"] == pytest.approx(reference["eval"], rel=LIMITS[run])
    for key in ("batch/items", "batch/samples"):
        assert [s[key] for s in here["steps"]] == [s[key] for s in reference["steps"]]
    if run != "bf16":  # a norm is a sum of squares of noise at that precision
        norms = [[s["train/grad_norm"] for s in told["steps"]] for told in (here, reference)]
        assert norms[0] == pytest.approx(norms[1], rel=10 * LIMITS[run])
        clips = [[s["train/clip_factor"] for s in told["steps"]] for told in (here, reference)]
        assert clips[0] == pytest.approx(clips[1], rel=10 * LIMITS[run])
    assert here["steps"][-1]["batch/samples"] == 37
    assert min(s["train/clip_factor"] for s in here["steps"]) < 0.9, "nothing was clipped, so agreement proves less"
    assert losses(here)[-1] < 0.8 * losses(here)[0], "nothing was learnt, so agreement proves nothing"


@pytest.mark.parametrize(("backend", "run"), PARITY)
def test_the_rate_used_at_every_step_is_the_plans(runs: dict[str, dict[str, Told]], backend: str, run: str) -> None:
    """Read from the optimizer as it steps. DeepSpeed steps once for each group of parameters."""
    told = on_two(runs, backend, run)
    groups = len(told["used"]) // STEPS
    assert told["used"] == [rate for rate in told["planned"] for _ in range(groups)]
    assert groups >= 1
    assert told["used"][0] > 0
    assert len(set(told["used"])) > STEPS // 2


@pytest.mark.parametrize("backend", ON_TWO)
def test_another_ratio_and_accumulation_have_their_own_rates(runs: dict[str, dict[str, Told]], backend: str) -> None:
    """k = 12 in twelve passes, where the runs above have k = 2 in two."""
    here, whole = on_two(runs, backend, "larger"), runs["ddp"]["larger"]
    assert losses(here) == pytest.approx(losses(whole), rel=1e-5)
    groups = len(here["used"]) // len(here["steps"])
    assert here["used"] == [rate for rate in here["planned"] for _ in range(groups)]
    assert here["planned"] == whole["used"] != runs["ddp"]["sgd"]["used"][:5]


@pytest.mark.parametrize("backend", ON_TWO)
def test_a_run_goes_from_ddp_to_another_backend_and_back(runs: dict[str, dict[str, Told]], backend: str) -> None:
    """20 steps of ddp on one rank, 15 of another on two, and the rest of ddp on one: as if nothing had been."""
    whole = losses(runs["ddp"]["adamw"])
    assert losses(on_two(runs, backend, "crossed")) == pytest.approx(whole[FIRST:SECOND], rel=1e-4)
    after = runs["back"][f"ddp after {backend}"]
    assert losses(after) == pytest.approx(whole[SECOND:], rel=1e-4)
    assert after["used"] == runs["ddp"]["adamw"]["used"][SECOND:]


def test_fsdp_alone_goes_on_from_fsdp_on_two(runs: dict[str, dict[str, Told]]) -> None:
    assert losses(runs["back"]["fsdp"]) == pytest.approx(losses(runs["ddp"]["adamw"])[SECOND:], rel=1e-4)


@pytest.mark.parametrize("backend", ON_TWO)
def test_a_backend_goes_on_from_its_own_checkpoint(runs: dict[str, dict[str, Told]], backend: str) -> None:
    here = losses(on_two(runs, backend, "own"))
    assert len(here) >= 5
    assert here == pytest.approx(losses(on_two(runs, backend, "adamw"))[FIRST:][: len(here)], rel=1e-5)


@pytest.mark.parametrize("run", [f"{b} poisoned" for b in ON_TWO] + [f"zero{stage} offload poisoned" for stage in (1, 2, 3)])
def test_nan_on_one_rank_moves_nothing_on_any(runs: dict[str, dict[str, Told]], run: str) -> None:
    told = on_two(runs, *run.split(" ", 1))
    assert told["applied"] == [1.0, 0.0, 1.0]
    still, moved = told["moved"]
    assert still == []
    assert {n for n in told["names"] if "/exp_avg" in n or n.startswith("model/")} <= set(moved)


OPTIONS = {
    "static_graph": 1e-5,
    "compress bf16": 1e-2,
    "compress powersgd": 5e-2,
    "recompute ddp": 1e-5,
    "recompute fsdp": 1e-5,
    "recompute zero3": 1e-5,
}
"""How far each may be from the plain run; what rounds gradients on their way may be further."""


@pytest.mark.parametrize("option", list(OPTIONS))
def test_an_option_changes_speed_and_memory_but_not_the_run(runs: dict[str, dict[str, Told]], option: str) -> None:
    here, whole = runs["options"][option], runs["ddp"]["sgd"]
    assert losses(here) == pytest.approx(losses(whole)[:10], rel=OPTIONS[option])
    assert [s["batch/items"] for s in here["steps"]] == [s["batch/items"] for s in whole["steps"][:10]]
    if option.startswith("compress"):
        assert losses(here)[1:] != losses(whole)[1:10], "nothing was rounded, so nothing was compressed"


def test_powersgd_forgets_a_step_that_was_not_finite(runs: dict[str, dict[str, Told]]) -> None:
    """What it rounded away it adds to the next gradient: NaN would never leave."""
    assert runs["options"]["poisoned"]["applied"] == [1.0, 0.0, 1.0]


def test_shards_within_a_node_and_a_copy_per_node_are_the_same_run(runs: dict[str, dict[str, Told]]) -> None:
    """HSDP on 2 nodes of 2, then FSDP on all 4, then HSDP again, each from the other's checkpoint."""
    whole = losses(runs["ddp"]["adamw"])
    assert losses(runs["nodes"]["hsdp"]) == pytest.approx(whole[:10], rel=1e-4)
    assert losses(runs["nodes"]["fsdp"]) == pytest.approx(whole[10:15], rel=1e-4)
    assert losses(runs["nodes"]["hsdp again"]) == pytest.approx(whole[15:20], rel=1e-4)


def test_state_goes_out_and_in_again_after_an_evaluation(runs: dict[str, dict[str, Told]]) -> None:
    """An evaluation has no backward, so it leaves the root's weights whole; taking state over must not mistake them for shards."""
    assert runs["fsdp"]["poisoned"]["lost"] == []


def test_gradients_travel_once_a_step_and_weights_as_reshard_says(runs: dict[str, dict[str, Told]]) -> None:
    """5 steps of two passes. Freed, a block is gathered four times a step and the rest twice; kept, everything once.

    Before them the recipe is tried, in 5 forwards: blocks are gathered in each, the rest is whole from there to the first step.
    """
    freed, kept = runs["fsdp"]["freed"]["traffic"], runs["fsdp"]["kept"]["traffic"]
    assert freed["reduce"] == kept["reduce"] == 5 * UNITS
    assert freed["gather"] == 5 * (2 * (UNITS - 1) * 2 + 2) + 5 * (UNITS - 1)
    assert kept["gather"] == 5 * UNITS
    assert losses(runs["fsdp"]["kept"]) == losses(runs["fsdp"]["freed"])


@pytest.mark.parametrize(("name", "fused"), [("sgd", False), ("adagrad", False), ("adam", True), ("adamw", True)])
def test_on_a_gpu_fsdp_fuses_only_what_takes_shards(name: str, fused: bool) -> None:
    """Built on a one-rank mesh, as for a GPU, and stepped: a fused kernel that refuses sharded tensors raises here."""
    sections = {"optim": {"name": name, "lr": 0.1}, "backend": {"name": "fsdp"}}
    c = decode(config("bytes_lm", "sgd", "fp32", 16, "texts") | sections)
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())  # type: ignore[attr-defined]
    try:
        model = nn.Linear(4, 4)
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        optimizer = build_optimizer(plan(c, World(1, 1, "gpu")), load_recipe(c.recipe), model, fused=True)
        assert all(bool(g.get("fused")) == fused for g in optimizer.param_groups)
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"backend": {"reshard": False}}, "backend.reshard: is false, but backend.name: ddp has no such setting; leave it out, or"),
        ({"backend": {"name": "zero2", "compress": "bf16"}}, "backend.compress: is bf16, but backend.name: zero2 has no such"),
        ({"backend": {"name": "fsdp", "shard": "node"}}, "backend.shard: is node, but the plan has one node"),
        ({"backend": {"name": "zero2", "offload": "all"}}, "backend.offload: is all, but zero2 keeps whole weights"),
        ({"backend": {"name": "fsdp", "offload": "optimizer"}}, "backend.offload: is optimizer, but fsdp offloads weights and"),
        ({"backend": {"name": "fsdp"}, "optim": {"name": "lamb", "lr": 0.1}}, "optim.name: is lamb, which pytorch_optimizer.Lamb"),
        ({"backend": {"name": "zero1"}, "optim": {"name": "lars", "lr": 0.1}}, "optim.name: is lars, which needs whole layers"),
        ({"backend": {"name": "zero1"}, "optim": {"name": "adagrad", "lr": 0.1}}, "optim.name: is adagrad, whose weight decay"),
        ({"backend": {"name": "fsdp"}, "precision": "fp16"}, "precision: is fp16, and fsdp has no common loss scale"),
        ({"backend": {"name": "zero3"}, "compute": {"compile": True}}, "compute.compile: is true, but zero3 gathers weights"),
        ({"backend": {"name": "zero0"}, "precision": "fp64"}, "precision: is fp64, and zero0 sends no float64"),
        ({"backend": {"name": "zero3"}, "precision": "fp64"}, "precision: is fp64, and zero3 keeps its weights in float32"),
    ],
)
def test_a_setting_that_the_backend_lacks_is_refused(sections: dict[str, Any], said: str) -> None:
    c = decode(config("bytes_lm", "sgd", "fp32", 16, "texts") | sections)
    with pytest.raises(UserError, match=said):
        plan(c, World(2, 1, "gpu"))


@pytest.mark.slow
def test_compiled_blocks_are_the_same_run_and_the_time_they_took_is_told(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts")
    run_ranks(1, ["tests.dist.workers.backends", "ddp", str(tmp_path), str(tmp_path / "texts")], tmp_path)
    run_ranks(2, ["tests.dist.workers.backends", "compiled", str(tmp_path), str(tmp_path / "texts")], tmp_path)
    whole = json.loads((tmp_path / "ddp.json").read_text())["sgd"]
    compiled = json.loads((tmp_path / "compiled.json").read_text())
    assert set(compiled) == {"ddp", "fsdp", "zero0", "zero1", "zero2"}
    for told in compiled.values():
        assert losses(told) == pytest.approx(losses(whole)[:5], rel=1e-5)
        assert any("the first step took" in notice for notice in told["notices"])
