"""The golden test: one recipe and one global batch of 64 on six layouts of ranks give the same losses, step for step."""

import json
from typing import Any

import pytest

from tests.dist.workers.layouts import LAYOUTS, RUNS, STEPS
from tests.support.processes import run_ranks

MADE = [(" ".join(r), name) for r in RUNS for name, layout in LAYOUTS.items() if r[1] != "chunks" or layout["micro"] == 16]
Steps = list[dict[str, Any]]
LIMITS = {
    "digits sgd fp64": 1e-10,
    "bytes_lm sgd fp64": 1e-10,
    "bytes_lm adamw fp64": 1e-10,
    "bytes_lm chunks fp64": 1e-10,
    "bytes_lm muon fp64": 1e-5,
}
"""Muon makes its updates in bfloat16, where a difference of the last bit of float64 may round to another number. fp32: 1e-5."""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Steps]:
    """What each step said, by run and layout, from three launches with 1, 2 and 4 processes."""
    folder = tmp_path_factory.mktemp("layouts")
    texts = folder / "texts"
    texts.mkdir()
    for number in range(8):
        words = " ".join(str(i * i % (97 + number)) for i in range(1500 + 311 * number))
        (texts / f"{number}.py").write_text(words)
    results: dict[str, Steps] = {}
    for processes in (1, 2, 4):
        out = folder / f"{processes}.json"
        run_ranks(processes, ["tests.dist.workers.layouts", str(out), str(texts)], folder)
        results |= json.loads(out.read_text())
    return results


@pytest.mark.parametrize(("run", "layout"), MADE)
def test_every_layout_tells_the_same_losses(told: dict[str, Steps], run: str, layout: str) -> None:
    reference, steps = told[f"{run} 1x(4x16)"][:-1], told[f"{run} {layout}"][:-1]
    assert len(steps) == len(reference) == STEPS
    limit = LIMITS.get(run, 1e-5)
    for here, there in zip(steps, reference, strict=True):
        assert here["train/loss"] == pytest.approx(there["train/loss"], rel=limit)
        assert here["train/lr"] == there["train/lr"]
        assert here["batch/items"] == there["batch/items"]
    assert steps[-1]["batch/samples"] == 37
    assert steps[-1]["train/loss"] < 0.8 * steps[0]["train/loss"], "nothing was learnt, so agreement proves nothing"


@pytest.mark.parametrize(("run", "layout"), MADE)
def test_evaluation_is_exact_on_every_layout(told: dict[str, Steps], run: str, layout: str) -> None:
    """The 360 images of digits are 22.5 chunks of 16, so that ranks have unequal shares."""
    reference, here = told[f"{run} 1x(4x16)"][-1], told[f"{run} {layout}"][-1]
    assert here["eval/loss"] == pytest.approx(reference["eval/loss"], rel=LIMITS.get(run, 1e-5))
    if run.startswith("digits"):
        assert here["eval/accuracy_pct"] == reference["eval/accuracy_pct"]
        assert here["eval/accuracy_pct"] * 3.6 == pytest.approx(round(here["eval/accuracy_pct"] * 3.6), abs=1e-9)


def test_masked_tokens_make_counts_unequal(told: dict[str, Steps]) -> None:
    """Otherwise per-rank means would agree as well, and the golden test could not tell sums from means."""
    counts = [s["batch/items"] for s in told["bytes_lm sgd fp64 4x(1x16)"][:-2]]
    assert sum(c != 64 * 32 for c in counts) > 10
