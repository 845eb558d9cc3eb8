"""A stop that is asked for during an evaluation takes effect after a few passes, and the run resumes as if it had not been."""

import json
from typing import Any

import pytest

from tests.dist.test_backends import write_texts
from tests.dist.workers.abandoned import BACKENDS
from tests.support.processes import run_ranks


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("abandoned")
    write_texts(folder / "texts")
    run_ranks(2, ["tests.dist.workers.abandoned", str(folder), str(folder / "texts")], folder)
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("name", BACKENDS)
def test_one_rank_s_stop_ends_an_evaluation_on_all_and_it_is_made_up_for(name: str, results: Any) -> None:
    found = results[name]
    assert found["every"] >= 20, "passes of both evaluations"
    first, second = found["few"]
    assert first == second
    assert first in (2, 3), "the ranks look after the first pass, and then after two more at most"
    assert (found["end"], found["saved"]) == (["stop_requested"], [16])
    assert "evaluation_abandoned" in found["notices"]
    before, after = found["parts"]
    assert [what for what, _ in before] == ["Stepped 8", "Stepped 16"]
    assert after[0][0] == "Evaluated 16", "before the first step"
    assert before + after == found["straight"]
