"""`widebatch verify` passes a clean run, and finds and names each of five bugs that are planted in this test's own processes."""

import json
import sys
from pathlib import Path

import pytest

from tests.dist.processes import ROOT, run_command, run_ranks

Found = list[dict[str, str]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Found]:
    """What verify found, by case."""
    out = tmp_path_factory.mktemp("verify") / "found.json"
    run_ranks(2, ["tests.dist.planted", str(out)], out.parent)
    told: dict[str, Found] = json.loads(out.read_text())
    return told


def differs(told: Found) -> dict[str, str]:
    """What differs, first things first."""
    return {f["what"]: f["text"] for f in told if f["verdict"] == "differs"}


@pytest.mark.parametrize("case", ["clean bytes_lm", "clean digits", "clean fsdp", "clean zero2"])
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
    "scheduler per process": ("lr", "the schedule moves once per process"),
    "short window": ("gradients", "a short step of 18 samples was divided by a full step's 32"),
    "wrong shuffle": ("samples", "Does each rank shuffle, or cut its share, by itself?"),
    "clean normed": ("micro-batch", "BatchNorm's statistics are of one pass on one rank"),
    "clean mean": ("micro-batch", "does loss() return a mean? It must return a sum and its count"),
}


@pytest.mark.parametrize("case", list(PLANTED))
def test_a_bug_is_found_and_named(found: dict[str, Found], case: str) -> None:
    what, said = PLANTED[case]
    wrong = differs(found[case])
    assert next(iter(wrong)) == what
    assert said in wrong[what]


def test_a_bug_of_the_recipe_is_no_difference_between_ranks(found: dict[str, Found]) -> None:
    """BatchNorm by pass, and a mean for a loss, are the same on two ranks and in one process: they hang on the micro-batch."""
    assert set(differs(found["clean normed"])) == set(differs(found["clean mean"])) == {"micro-batch"}


def test_dropout_is_no_fault(found: dict[str, Found]) -> None:
    assert differs(found["clean dropout"]) == {}
    (note,) = [f for f in found["clean dropout"] if f["verdict"] == "note"]
    assert "dropout" in note["text"]


def test_the_command_starts_the_ranks_and_tells_by_its_status(tmp_path: Path) -> None:
    """Status 1; README's example has status 0."""
    tree = {
        "recipe": {"use": f"{ROOT}/tests/dist/planted.py:Normed", "samples": 1437},
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
