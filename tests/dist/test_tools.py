"""The bare tools start the worker too, and it refuses a world that nobody planned. accelerate: test_launch, torchrun: test_resume,
srun: test_slurm."""

import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.dist.test_resume import EPOCHS, SIZE, journal, run_file, trained_ids
from tests.support.processes import run_command


def test_a_process_that_finds_itself_alone_refuses_a_plan_for_two(tmp_path: Path) -> None:
    path = run_file(tmp_path, "total: 8")
    output = run_command([sys.executable, "-m", "harness", str(path), "--ranks", "2"], tmp_path, status=2)
    assert "error: world: planned for 2 ranks, but this process finds 1; the processes did not find each other" in output
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_deepspeed_launcher_runs_the_worker(tmp_path: Path) -> None:
    path = run_file(tmp_path, "total: 8")
    argv = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--module", "harness", str(path), "--ranks", "2"]
    run_command(argv, tmp_path)
    assert journal(tmp_path, "start")[0]["plan"]["world_size"] == 2
    assert trained_ids(tmp_path) == Counter(dict.fromkeys(range(SIZE), EPOCHS))
