"""What a start does not pay for: modules it has no use for, garbage collection of imports, Python for each value of the data."""

import subprocess
import sys
from pathlib import Path

import torch

from harness.recipes.fingerprint import column_digests
from tests.support.processes import ROOT


def printed(code: str, *argv: str) -> str:
    """The last line that a process printed."""
    done = subprocess.run([sys.executable, "-c", code, *argv], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def test_the_overview_imports_no_more_than_it_prints() -> None:
    code = (
        "import sys; from launch.cli import main; main(['--help']); print(sorted({'typing', 'pathlib', 'yaml'} & {*sys.modules}))"
    )
    assert printed(code) == "[]"


def test_no_collection_walks_what_is_imported_before_training(tmp_path: Path) -> None:
    code = """
import gc, sys
during = []
def note(phase, info):
    if phase == "start" and "torch" in sys.modules and "harness.training.loop" not in sys.modules:
        during.append(info["generation"])
gc.callbacks.append(note)
from harness.__main__ import main
status = main(["configs/digits.yaml", "--run.stop_after_steps", "1", "--run.dir", sys.argv[1], "--watch.wandb", "off"])
print(status, len(during), gc.isenabled())
"""
    assert printed(code, str(tmp_path / "run")) == "0 0 True"


def test_rows_have_one_digest_where_their_values_and_types_are_the_same() -> None:
    x, y = torch.arange(12.0).reshape(4, 3), torch.tensor([1, 2, 1, 2])
    first = column_digests({"x": x, "y": y})
    assert len(set(first)) == 4
    picked = torch.tensor([2, 0])
    assert column_digests({"x": x[picked], "y": y[picked]}) == [first[2], first[0]]
    for other in ({"x": x.double(), "y": y}, {"x": x, "z": y}, {"x": x.reshape(4, 1, 3), "y": y}, {"x": x + 1, "y": y}):
        assert not set(first) & set(column_digests(other))


def test_rows_of_any_type_and_size_have_a_digest() -> None:
    kinds = {"flag": torch.tensor([True, False]), "wave": torch.tensor([1j, 2j]), "half": torch.ones(2, 2, dtype=torch.bfloat16)}
    assert len(set(column_digests({**kinds, "none": torch.empty(2, 0)}))) == 2
