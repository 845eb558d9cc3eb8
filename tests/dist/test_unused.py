"""Trained parameters that not every pass or rank uses, and which parameters are trained at all: the same on every backend."""

import json
import re
from typing import Any

import pytest
import torch

from harness.data.sample_order import Order, derive
from harness.data.seeding import ORDER
from harness.engine.initial_model import initial_model
from tests.dist.workers.unused import BACKENDS, ROWS, SHARDED, Kind, Net, Unused, run
from tests.support.processes import run_ranks

WHOLE = tuple(b for b in BACKENDS if b not in SHARDED)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What comes of each kind on each backend, on two ranks."""
    out = tmp_path_factory.mktemp("unused") / "found.json"
    run_ranks(2, ["tests.dist.workers.unused", str(out)], out.parent)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def by_hand(kind: Kind) -> list[float]:
    """The losses of a plain loop in passes of two rows, in which a parameter without a gradient gets zeros."""
    torch.manual_seed(0)
    recipe, losses = Unused(kind), []
    model = initial_model(recipe, 0)
    assert isinstance(model, Net)
    model.train()
    groups: list[dict[str, Any]] = [
        {"params": [model.a.weight, model.b.weight]},
        {"params": [model.a.bias, model.b.bias], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.02, momentum=0.9, weight_decay=0.1)
    data, order = recipe.data("train"), torch.from_numpy(Order(ROWS, derive(0, ORDER)).take(0, ROWS).astype("int64"))
    for rows in torch.split(order, 8):
        total = 0.0
        for part in torch.split(rows, 2):
            loss, _ = recipe.loss(model, data.take(part))
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        for p in [p for group in groups for p in group["params"]]:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad / len(rows)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total / len(rows))
    return losses


@pytest.mark.parametrize("kind", ["always", "never", "some"])
def test_one_process_takes_zero_for_a_gradient_that_is_not_there(kind: Kind) -> None:
    assert run(kind, world=2)["losses"] == pytest.approx(by_hand(kind), rel=1e-5)


@pytest.mark.parametrize("backend", [*WHOLE, "compress"])
@pytest.mark.parametrize("kind", ["never", "some"])
def test_ranks_reduce_what_only_some_of_them_used(kind: Kind, backend: str, ranks: dict[str, Any]) -> None:
    """ddp ended the first step with one rank's own gradient and loss, and fsdp hung."""
    here, alone = ranks[f"{kind} {backend}"], run(kind, world=2)
    limit = 2e-2 if backend == "compress" else 1e-5
    assert here["refused"] == ""
    assert here["losses"] == pytest.approx(alone["losses"], rel=limit)
    assert here["norms"] == pytest.approx(alone["norms"], rel=limit)


def test_a_rank_that_holds_nothing_saves_nothing(ranks: dict[str, Any]) -> None:
    """Of layers with one output, fsdp's second rank has no rows."""
    parts = [ranks["first fsdp"], ranks["then fsdp"]]
    assert [part["refused"] for part in parts] == ["", ""]
    assert parts[0]["losses"] + parts[1]["losses"] == ranks["never fsdp"]["losses"]


def test_in_one_pass_too(ranks: dict[str, Any]) -> None:
    assert ranks["some one pass"]["losses"] == pytest.approx(run("some", world=2, passes=1)["losses"], rel=1e-5)


@pytest.mark.parametrize("backend", [*BACKENDS, "static_graph", "alone"])
def test_what_no_rank_uses_is_said_after_the_first_step(backend: str, ranks: dict[str, Any]) -> None:
    found = run("never") if backend == "alone" else ranks[f"never {backend}"]
    assert found["losses"] == pytest.approx(run("never")["losses"], rel=1e-5)
    assert found["notices"] == [
        "no gradient reached 2 of 4 trained parameters in the first step (b.weight, b.bias): it is taken as zero, so weight "
        "decay and momentum still move them; set requires_grad_(False) on unused parameters"
    ]


@pytest.mark.parametrize(
    "run_name", [f"{kind} {b}" for kind in ("some", "late") for b in SHARDED if (kind, b) != ("some", "zero3")]
)
def test_deepspeeds_shards_refuse_what_they_would_add_up_wrongly(run_name: str, ranks: dict[str, Any]) -> None:
    kind, backend = run_name.split()
    found = ranks[run_name]
    why = (
        "some passes of the first step gave b.weight, b.bias no gradient"
        if kind == "some"
        else "b.* got its first gradient after step 1"
    )
    assert re.match(
        f"backend.name: is {backend}, which needs the same parameters in every pass on every rank, and {why}; "
        r"use backend.name: ddp, zero0 or fsdp, or requires_grad_\(False\) on unused parameters",
        found["refused"],
    )
    assert len(found["losses"]) == {"some": 0, "late": 4}[kind]


@pytest.mark.parametrize("backend", [*BACKENDS, "alone"])
@pytest.mark.parametrize("kind", ["frozen later", "unfrozen later"])
def test_requires_grad_that_changes_in_mid_run_is_refused(kind: Kind, backend: str, ranks: dict[str, Any]) -> None:
    found = run(kind, passes=1) if backend == "alone" else ranks[f"{kind} {backend}"]
    done = (
        "b.weight, b.bias was changed during the run (frozen)"
        if kind == "frozen later"
        else "c.weight, c.bias was changed during the run (unfrozen)"
    )
    assert found["refused"].startswith(f"recipe.use: requires_grad of {done}")
    assert len(found["losses"]) == 4, "the steps before it are told"


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_optimizer_may_hold_frozen_weights(backend: str, ranks: dict[str, Any]) -> None:
    found, alone = ranks[f"held {backend}"], run("held", world=2)
    assert found["refused"] == alone["refused"] == ""
    assert found["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert alone["losses"][-1] < alone["losses"][0]
