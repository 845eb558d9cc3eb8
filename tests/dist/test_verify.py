"""`widebatch verify` passes a clean run, and finds and names each of five bugs that are planted in this test's own processes."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from harness.analysis.equivalence import LIMITS, StepTrace, Trace, judge, pair, same_count
from tests.support.processes import ROOT, run_command, run_ranks

Found = list[dict[str, str]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Found]:
    """What verify found, by case."""
    out = tmp_path_factory.mktemp("verify") / "found.json"
    run_ranks(2, ["tests.dist.workers.planted", str(out)], out.parent)
    told: dict[str, Found] = json.loads(out.read_text())
    return told


def differs(told: Found) -> dict[str, str]:
    """What differs, first things first."""
    return {f["what"]: f["text"] for f in told if f["verdict"] == "differs"}


@pytest.mark.parametrize("case", ["clean bytes_lm", "clean digits", "clean weighted", "clean fsdp", "clean zero2"])
def test_a_clean_run_passes(found: dict[str, Found], case: str) -> None:
    assert differs(found[case]) == {}
    assert {f["verdict"] for f in found[case]} == {"same"}
    looked = [
        "samples",
        "lr",
        "items",
        "loss",
        "gradients",
        "gradient of each weight",
        "weights",
        "validation",
        "repeat",
        "micro-batch",
    ]
    if case == "clean zero2":  # DeepSpeed keeps its gradients to itself
        looked.remove("gradient of each weight")
    assert [f["what"] for f in found[case]] == looked


PLANTED = {
    "mean loss per rank": ("items", "means are averaged where sums should be divided by the count"),
    "scheduler per process": ("lr", "the scheduler is stepped once per process"),
    "short window": ("gradients", "a short step of 18 samples was divided by a full step's 32"),
    "wrong shuffle": ("samples", "Does each rank shuffle, or take its share, on its own?"),
    "clean normed": ("micro-batch", "BatchNorm normalizes over one pass on one rank"),
    "clean mean": ("micro-batch", "does loss() return a mean? It must return a sum and its count"),
}


@pytest.mark.parametrize("case", list(PLANTED))
def test_a_bug_is_found_and_named(found: dict[str, Found], case: str) -> None:
    what, said = PLANTED[case]
    wrong = differs(found[case])
    assert next(iter(wrong)) == what
    assert said in wrong[what]


def test_a_bug_of_the_recipe_is_no_difference_between_ranks(found: dict[str, Found]) -> None:
    """BatchNorm by pass, and a mean for a loss, are the same on two ranks and in one process: they depend on the micro-batch."""
    assert set(differs(found["clean normed"])) == set(differs(found["clean mean"])) == {"micro-batch"}


def test_a_gradient_of_zero_in_a_short_step_is_compared_like_any_other() -> None:
    def trace(last: float) -> Trace:
        steps = [StepTrace(Counter(), samples, 1.0, float(samples), norm, (0.1,)) for samples, norm in ((32, 2.0), (18, last))]
        return Trace(steps, {"w": [1.0, 1.0]}, {})

    findings = {f.what: f for f in judge(trace(0.5), trace(0.0), [0.1, 0.1], 2, LIMITS["fp32"])}
    assert findings["gradients"].verdict == "differs"
    assert "norm 0.5 on the ranks, 0 in one process" in findings["gradients"].text


def test_dropout_is_no_fault(found: dict[str, Found]) -> None:
    assert differs(found["clean dropout"]) == {}
    (note,) = [f for f in found["clean dropout"] if f["verdict"] == "note"]
    assert "dropout" in note["text"]


@pytest.mark.parametrize(("a", "b", "same"), [(37.8067, 37.80671, True), (37.8067, 37.81, False), (1e6, 1e6 + 1, False)])
def test_counts_are_compared_exactly_where_they_are_whole(a: float, b: float, *, same: bool) -> None:
    """Sums of class weights differ by rounding; a token that is missing among a million is missing."""
    assert same_count(a, b, LIMITS["fp32"]) == same


def test_two_numbers_are_printed_so_that_they_differ() -> None:
    assert pair(37.80670001, 37.80670002) == ("37.80670001", "37.80670002")
    assert pair(1e6, 1e6 + 1) == ("1000000", "1000001")
    assert pair(0.1, 0.25) == ("0.1", "0.25")
    assert pair(0.1 + 0.2, 0.3)[0] != pair(0.1 + 0.2, 0.3)[1]
    assert pair(2.5, 2.5) == ("2.5", "2.5")
    assert pair(float("nan"), 2.0) == ("nan", "2")


def test_the_command_starts_the_ranks_and_tells_by_its_status(tmp_path: Path) -> None:
    """Status 1; README's example has status 0."""
    tree = {
        "recipe": {"use": f"{ROOT}/tests/dist/workers/planted.py:Normed", "samples": 1437},
        "batch": {"reference": 16, "total": 32, "micro": 8},
        "optim": {"lr": 0.05},
        "scaling": {"warmup_samples": 64},
        "schedule": {"samples": 960},
        "run": {"dir": str(tmp_path / "run")},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(tree))
    argv = [sys.executable, "-m", "launch", "verify", str(tmp_path / "run.yaml"), "--gpus", "0", "--procs", "2"]
    said = run_command(argv, tmp_path, status=1)
    assert "2 ranks of backend ddp in fp32, beside one process" in said
    assert "the first difference: micro-batch" in said
    assert not (tmp_path / "run").exists(), "it leaves no run behind"
