"""A checkpoint of any backend on any world is taken up by any other: all pairs. Long: `make test-all`."""

import json
from itertools import product
from pathlib import Path

import pytest

from tests.dist.test_backends import Told, losses, write_texts
from tests.dist.workers.matrix import BACKENDS, SAVED, STEPS, WORLDS
from tests.support.processes import run_ranks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Told]]:
    """What was said by stage and world."""
    folder: Path = tmp_path_factory.mktemp("matrix")
    write_texts(folder / "texts")
    (folder / "loads").mkdir()
    for stage, world in product(("save", "load"), WORLDS):
        run_ranks(world, ["tests.dist.workers.matrix", stage, str(folder), str(folder / "texts")], folder)
    run_ranks(1, ["tests.dist.workers.backends", "ddp", str(folder), str(folder / "texts")], folder)
    names = [f"{stage}-{world}" for stage, world in product(("save", "load"), WORLDS)] + ["ddp"]
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in names}


@pytest.mark.parametrize(("saver", "before", "loader", "after"), product(BACKENDS, WORLDS, BACKENDS, WORLDS))
def test_the_next_losses_are_those_of_the_run_that_was_not_stopped(
    runs: dict[str, dict[str, Told]], saver: str, before: int, loader: str, after: int
) -> None:
    whole = losses(runs["ddp"]["adamw"])[SAVED : SAVED + STEPS]
    here = runs[f"load-{after}"][f"{saver} {before} {loader}"]
    assert losses(here) == pytest.approx(whole, rel=1e-4)
    if saver == loader:
        assert losses(here)[0] == pytest.approx(whole[0], rel=1e-5)
    assert [s["batch/items"] for s in here["steps"]] == [s["batch/items"] for s in runs["ddp"]["adamw"]["steps"]][SAVED:][:STEPS]
