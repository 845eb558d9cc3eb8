"""Buffers by their kind: constants stay, statistics are averaged, counts are refused where ranks differ; bad steps move none."""

import json
import math
from typing import Any

import pytest

from tests.dist.workers.buffered import Kind, run
from tests.support.processes import run_ranks

LOWEST = -3.4028234663852886e38


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What comes of each kind on two ranks."""
    out = tmp_path_factory.mktemp("buffered") / "found.json"
    run_ranks(2, ["tests.dist.workers.buffered", str(out)], out.parent)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


@pytest.mark.parametrize("kind", ["mask", "hidden", "mask fsdp"])
def test_a_mask_is_a_constant(kind: str, ranks: dict[str, Any]) -> None:
    """The sum over ranks of the smallest number was -inf, and everything after it NaN; so was the average of an infinite one."""
    found, alone = ranks[kind], run("hidden" if kind == "hidden" else "mask")
    assert found["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert found["eval"]["eval/loss"] == pytest.approx(alone["eval"]["eval/loss"], rel=1e-5)
    assert {x for rank in found["buffers"] for held in rank for x in held} == (
        {0.0, -math.inf} if kind == "hidden" else {0.0, LOWEST}
    )
    assert found["notices"] == []
    if "fsdp" not in kind:
        assert math.isfinite(found["eval"]["eval/ema_loss"])


@pytest.mark.parametrize("kind", ["mean", "complex", "norm"])
def test_a_statistic_is_averaged_and_other_than_a_norm_layer_s_it_is_said(kind: str, ranks: dict[str, Any]) -> None:
    found = ranks[kind]
    assert found["buffers"][0] == found["buffers"][1]
    assert math.isfinite(found["eval"]["eval/ema_loss"])
    said = ["buffer state differs between ranks: it is averaged over ranks before each evaluation and checkpoint"]
    assert found["notices"] == ([] if kind == "norm" else said)


def test_counts_that_differ_are_refused_by_name(ranks: dict[str, Any]) -> None:
    for kind, dtype in (("histogram", "int64"), ("flags", "bool")):
        assert ranks[kind].startswith(
            f"recipe.use: buffer state (torch.{dtype}) differs between ranks after the first step; keep it"
        )


def test_a_counter_of_passes_is_rank_0_s_where_the_last_step_has_fewer_on_others(ranks: dict[str, Any]) -> None:
    assert ranks["counter"]["buffers"] == [[[6.0]], [[6.0]]]
    assert ranks["counter"]["notices"] == [
        "buffer state differs between ranks: it is taken from rank 0 before each evaluation and checkpoint"
    ]
    tracked = [rank[2] for rank in ranks["norm"]["buffers"]]
    assert tracked == [[6.0], [6.0]], "BatchNorm's count of passes"


@pytest.mark.parametrize("kind", ["mean", "growing", "complex"])
def test_a_bad_step_moves_no_statistic_however_it_is_kept(kind: Kind) -> None:
    found = run(kind, bad=7)
    assert sum(x is None or math.isnan(x) for x in found["losses"]) == 1
    assert all(map(math.isfinite, found["buffers"][0][0]))
    if kind == "mean":
        assert found["losses"] == pytest.approx(run("mean in place", bad=7)["losses"], nan_ok=True)
        assert found["eval"]["eval/loss"] == run("mean in place", bad=7)["eval"]["eval/loss"]


def test_nor_on_two_ranks(ranks: dict[str, Any]) -> None:
    assert math.isfinite(ranks["mean bad"]["eval"]["eval/loss"])
