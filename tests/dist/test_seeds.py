"""Random numbers that a recipe draws without seeding them are those of the run's seed, of each place in the stream."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from harness.config.errors import UserError
from tests.dist.workers.drawing import Kind, events, losses, notices, parts, tree
from tests.support.processes import run_ranks

SEEDED: list[Kind] = ["model", "loss", "split", "rows", "collate", "metrics"]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two ranks give, by kind."""
    out = tmp_path_factory.mktemp("drawing") / "found.json"
    run_ranks(2, ["tests.dist.workers.drawing", str(out)], out.parent)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


@pytest.mark.parametrize("kind", SEEDED)
def test_a_run_repeats_and_is_the_same_on_two_ranks(kind: Kind, ranks: dict[str, Any]) -> None:
    first = losses(events(tree(kind)))
    assert len(first) == 7
    assert len(set(first)) == 7
    assert losses(events(tree(kind))) == first
    assert ranks[kind] == pytest.approx(first, rel=1e-5)


def test_random_split_cuts_parts_without_a_common_row() -> None:
    train, valid = parts("train"), parts("valid")
    assert sorted(train + valid) == list(range(64))
    assert train == parts("train")


def test_a_sample_s_draws_depend_neither_on_workers_nor_on_how_the_batch_is_cut() -> None:
    runs = [losses(events(tree("rows", micro=micro, workers=workers))) for micro, workers in [(4, 0), (4, 2), (16, 1)]]
    for one, other in pairwise(runs):
        assert one[:6] == pytest.approx(other[:6], rel=1e-5)
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (
            "model entropy",
            "recipe.use: model() gave rank 1 a different model than rank 0: order is not the same; draw from torch, numpy",
        ),
        (
            "split entropy",
            "recipe.use: data('train') gave rank 1 a different data set than rank 0 (other rows); draw from torch, numpy",
        ),
    ],
)
def test_what_no_seed_reaches_is_refused_by_name_where_ranks_differ(kind: Kind, said: str, ranks: dict[str, Any]) -> None:
    assert str(ranks[kind]).startswith(said)


def test_rows_that_no_seed_reaches_are_said(ranks: dict[str, Any]) -> None:
    assert len(ranks["rows entropy"]) == 7
    said = [text for text in ranks["notices rows entropy"] if "generator of their own" in text]
    assert ["data('train')" in text for text in said] == [True, False], "of training, then of validation"
    assert not ranks["notices rows"]


def test_a_buffer_that_is_not_saved_is_the_same_after_a_resume_or_the_resume_is_refused(tmp_path: Path) -> None:
    for kind in ("model", "model entropy"):
        folder = tmp_path / kind
        first = tree(kind) | {"run": {"stop_after_steps": 3}}
        before = losses(events(first, folder))[:3]
        if kind == "model entropy":
            with pytest.raises(
                UserError, match=r"buffer order is not saved \(persistent=False\), and model\(\) makes a different one"
            ):
                events(tree(kind), folder)
        else:
            assert before + losses(events(tree(kind), folder)) == losses(events(tree(kind)))


@pytest.mark.parametrize("kind", ["split", "split entropy", "same rows", "loss"])
def test_validation_rows_that_are_training_rows_are_said(kind: Kind) -> None:
    told = notices(events(tree(kind)), "data")
    assert len(told) == (kind in ("split entropy", "same rows"))
    assert all("validation rows" in text and "are training rows" in text for text in told)


def verdicts(found: list[dict[str, str]]) -> dict[str, str]:
    return {f["what"]: f["verdict"] for f in found}


def test_verify_passes_seeded_augmentation_and_names_what_no_seed_reaches(ranks: dict[str, Any]) -> None:
    assert set(verdicts(ranks["verify rows"]).values()) == {"same"}
    entropy = ranks["verify rows entropy"][0]
    assert (entropy["what"], entropy["verdict"]) == ("samples", "differs")
    assert "a random generator of their own" in entropy["text"]
    for kind, said in (("collate", "collate draws random numbers"), ("loss", "other random operations")):
        found = {f["what"]: f for f in ranks[f"verify {kind}"]}
        assert found["micro-batch"]["verdict"] == "note"
        assert said in found["micro-batch"]["text"]
        assert "differs" not in verdicts(ranks[f"verify {kind}"]).values()
