"""The same run on another backend: the losses, rates and checkpoints of ddp, where weights and moments lie in shards."""

import json
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from harness.parts.optim import build_optimizer
from harness.plan.decode import decode
from harness.plan.errors import UserError
from harness.plan.plan import plan
from harness.plan.world import World
from tests.dist.backends import FIRST, SECOND
from tests.dist.layouts import STEPS, config
from tests.dist.processes import run_ranks

Told = dict[str, Any]
LIMITS = {"sgd": 1e-5, "adamw": 1e-4, "bf16": 2e-2, "fp64": 1e-10}
UNITS = 3
"""What fsdp gathers one by one: two blocks, and the rest."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Told]]:
    """What each run said, by stage and name, from three launches: ddp on 1, fsdp on 2, and both on 1 again."""
    folder = tmp_path_factory.mktemp("backends")
    texts = folder / "texts"
    texts.mkdir()
    for number in range(8):
        words = " ".join(str(i * i % (97 + number)) for i in range(1500 + 311 * number))
        (texts / f"{number}.py").write_text(words)
    for stage, ranks in (("ddp", 1), ("fsdp", 2), ("back", 1)):
        run_ranks(ranks, ["tests.dist.backends", stage, str(folder), str(texts)], folder)
    return {stage: json.loads((folder / f"{stage}.json").read_text()) for stage in ("ddp", "fsdp", "back")}


def losses(told: Told, first: int = 0) -> list[float]:
    """Losses per step from step `first`."""
    return [s["train/loss"] for s in told["steps"][first:]]


@pytest.mark.parametrize("run", list(LIMITS))
def test_fsdp_on_two_ranks_tells_the_losses_of_ddp_on_one(runs: dict[str, dict[str, Told]], run: str) -> None:
    reference, here = runs["ddp"][run], runs["fsdp"][run]
    assert len(here["steps"]) == STEPS
    assert losses(here) == pytest.approx(losses(reference), rel=LIMITS[run])
    assert here["eval"] == pytest.approx(reference["eval"], rel=LIMITS[run])
    for key in ("batch/items", "batch/samples"):
        assert [s[key] for s in here["steps"]] == [s[key] for s in reference["steps"]]
    if run != "bf16":  # a norm is a sum of squares of noise at that precision
        norms = [[s["train/grad_norm"] for s in told["steps"]] for told in (here, reference)]
        assert norms[0] == pytest.approx(norms[1], rel=10 * LIMITS[run])
    assert here["steps"][-1]["batch/samples"] == 37
    assert min(s["train/clip_factor"] for s in here["steps"]) < 0.9, "nothing was clipped, so agreement proves less"
    assert losses(here)[-1] < 0.8 * losses(here)[0], "nothing was learnt, so agreement proves nothing"


@pytest.mark.parametrize("run", list(LIMITS))
def test_the_rate_used_at_every_step_is_the_plans(runs: dict[str, dict[str, Told]], run: str) -> None:
    told = runs["fsdp"][run]
    assert told["used"] == told["planned"]
    assert told["used"][0] > 0
    assert len(set(told["used"])) > STEPS // 2


def test_a_run_goes_from_ddp_to_fsdp_and_back(runs: dict[str, dict[str, Told]]) -> None:
    whole = losses(runs["ddp"]["adamw"])
    assert losses(runs["fsdp"]["crossed"]) == pytest.approx(whole[FIRST:SECOND], rel=1e-4)
    assert losses(runs["back"]["ddp"]) == pytest.approx(whole[SECOND:], rel=1e-4)
    assert losses(runs["back"]["fsdp"]) == pytest.approx(whole[SECOND:], rel=1e-4)
    assert runs["back"]["fsdp"]["used"] == runs["ddp"]["adamw"]["used"][SECOND:]


def test_fsdp_goes_on_from_its_own_checkpoint(runs: dict[str, dict[str, Told]]) -> None:
    assert losses(runs["fsdp"]["own"]) == pytest.approx(losses(runs["fsdp"]["adamw"], FIRST), rel=1e-5)


def test_nan_on_one_rank_moves_nothing_on_any(runs: dict[str, dict[str, Told]]) -> None:
    told = runs["fsdp"]["poisoned"]
    assert told["applied"] == [1.0, 0.0, 1.0]
    still, moved = told["moved"]
    assert still == []
    assert {n for n in told["names"] if "/exp_avg" in n or n.startswith("model/")} <= set(moved)


def test_state_goes_out_and_in_again_after_an_evaluation(runs: dict[str, dict[str, Told]]) -> None:
    """An evaluation has no backward, so it leaves the root's weights whole; taking state over must not mistake them for shards."""
    assert runs["fsdp"]["poisoned"]["lost"] == []


def test_gradients_travel_once_a_step_and_weights_as_reshard_says(runs: dict[str, dict[str, Told]]) -> None:
    """5 steps of two passes. Freed, a block is gathered four times a step and the rest twice; kept, everything once."""
    freed, kept = runs["fsdp"]["freed"]["traffic"], runs["fsdp"]["kept"]["traffic"]
    assert freed["reduce"] == kept["reduce"] == 5 * UNITS
    assert freed["gather"] == 5 * (2 * (UNITS - 1) * 2 + 2)
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
        optimizer = build_optimizer(plan(c, World(1, 1, "gpu")), model, torch.device("cuda"))
        assert all(bool(g.get("fused")) == fused for g in optimizer.param_groups)
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"backend": {"reshard": False}}, "backend.reshard: is false, but backend.name: ddp shards nothing"),
        ({"backend": {"name": "fsdp"}, "optim": {"name": "lamb", "lr": 0.1}}, "optim.name: is lamb, whose norms per layer"),
        ({"backend": {"name": "fsdp"}, "precision": "fp16"}, "precision: is fp16, whose loss scale"),
    ],
)
def test_a_setting_that_the_backend_lacks_is_refused(sections: dict[str, Any], said: str) -> None:
    c = decode(config("bytes_lm", "sgd", "fp32", 16, "texts") | sections)
    with pytest.raises(UserError, match=said):
        plan(c, World(2, 1, "gpu"))
