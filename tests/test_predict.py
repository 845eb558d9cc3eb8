"""Memory from shapes alone, against what torch's allocator gave out in real steps of the same run."""

import json
import sys
from pathlib import Path

import pytest

from tests.dist.processes import ROOT, run_command, run_ranks

RUN = """
recipe: {use: bytes_lm, width: 96, depth: 2, heads: 3, context: 64, max_bytes: 300000}
batch: {reference: 16, per_gpu: 16}
optim: {name: adamw, lr: 1.0e-3}
scaling: {rule: none}
schedule: {samples: 1600}
watch: {wandb: "off"}
backend: {name: BACKEND}
"""


def predicted(run: Path, ranks: int, *flags: str) -> dict[str, int]:
    argv = ["plan", str(run), "--gpus", "0", "--procs", str(ranks), "--memory", "--json", *flags]
    tree = json.loads(run_command([sys.executable, "-m", "launch", *argv], ROOT))
    memory: dict[str, int] = tree["memory"]
    return memory


def measured(run: Path, ranks: int) -> dict[str, int]:
    told = run_ranks(ranks, ["tests.dist.memory", str(run)], ROOT)
    found: dict[str, int] = json.loads(told.split("RESULT ")[1].splitlines()[0])
    return found


@pytest.mark.parametrize(("backend", "ranks"), [("ddp", 1), pytest.param("fsdp", 2, marks=pytest.mark.slow)])
def test_the_prediction_is_within_a_tenth_of_the_measured_peak(backend: str, ranks: int, tmp_path: Path) -> None:
    run = tmp_path / "gpt.yaml"
    run.write_text(RUN.replace("BACKEND", backend))
    told, real = predicted(run, ranks), measured(run, ranks)
    print(backend, ranks, told, real)
    assert told["peak"] == pytest.approx(real["peak"], rel=0.1)
    assert told["state"] == pytest.approx(real["state"], rel=0.1)


@pytest.mark.slow
def test_shares_shrink_with_the_world(tmp_path: Path) -> None:
    run = tmp_path / "gpt.yaml"
    run.write_text(RUN.replace("BACKEND", "fsdp"))
    few, many = predicted(run, 2), predicted(run, 64)
    assert many["state"] < few["state"] / 8
    assert many["peak"] < few["peak"]
    zero = predicted(run, 4, "--backend.name", "zero1", "--precision", "fp32")
    assert zero["state"] == pytest.approx(zero["weights"] * 7 / 4, rel=0.05), (
        "7 bytes a weight on 4 ranks: configs/results/memory.json"
    )
