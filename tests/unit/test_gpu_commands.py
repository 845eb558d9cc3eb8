"""`make test-gpu`, `make bench-gpu` and `make gpu-wheels`, as far as they can be run without a GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.bench.gpu import Size, Speed, speed
from tests.support.gpu_tests import outcomes
from tests.support.gpu_wheels import needed
from tests.support.processes import LIMIT_S, ROOT, environ


def python(*argv: str) -> subprocess.CompletedProcess[str]:
    """A module of ours, as `make` runs it."""
    return subprocess.run(
        [sys.executable, "-m", *argv], cwd=ROOT, env=environ(), capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


def test_the_benchmark_runs_from_end_to_end_on_a_stand_in() -> None:
    done = python("tests.bench.gpu", "--stand-in")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert set(row["tokens_per_s"]) == {"by hand, before", "all reported", "nothing", "by hand, after"}
    assert all(found["least"] > 0 for found in row["tokens_per_s"].values())
    assert row["host_waits_per_window"] == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("module", ["tests.bench.gpu", "tests.support.gpu_tests"])
def test_without_a_gpu_it_is_one_line_and_status_2(module: str) -> None:
    done = python(module)
    assert done.returncode == 2
    assert len((done.stdout + done.stderr).splitlines()) == 1


def test_a_speed_leaves_the_first_window_out() -> None:
    """Two windows of 10 steps of 4 rows of 8 tokens, in 1 and 2 seconds, after one that took long."""
    assert speed(Size(1, 1, 1, 8, 4, 3), [0.0, 100.0, 101.0, 103.0], 10) == Speed(240.0, 160.0, 320.0)


def test_the_record_of_the_tests_says_what_each_did(tmp_path: Path) -> None:
    cases = '<testcase classname="a" name="b" time="1.5"/><testcase classname="a" name="c" time="0"><skipped/></testcase>'
    broken = '<testcase classname="a" name="d" time="2"><failure/></testcase>'
    (tmp_path / "r.xml").write_text(f"<testsuites><testsuite>{cases}{broken}</testsuite></testsuites>")
    found = {name: case["outcome"] for name, case in outcomes(tmp_path / "r.xml").items()}
    assert found == {"a.b": "passed", "a.c": "skipped", "a.d": "failed"}


def test_wheels_are_those_of_the_base_without_torch() -> None:
    names = needed(("widebatch", "pytest"), "torch")
    assert {"deepspeed", "wandb", "msgspec", "orjson", "xxhash", "accelerate", "pytest"} <= set(names)
    assert not {"torch", "triton", "sympy", "widebatch", "ruff"} & set(names)
