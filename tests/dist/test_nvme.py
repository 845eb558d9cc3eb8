"""Optimizer state on a local disk: `make test-nvme`, as DeepSpeed compiles its part for minutes the first time."""

import json
from pathlib import Path
from typing import Any

import pytest

from harness.config.errors import UserError
from harness.config.loader import decode
from harness.plan.plan import plan
from harness.plan.world import World
from tests.dist.test_resume import journal
from tests.support.processes import run_ranks

DISK = {"name": "zero3", "offload": "optimizer"}


def run_file(folder: Path, name: str, **sections: Any) -> Path:
    """A model whose state is more than a MiB on each of two ranks: DeepSpeed leaves smaller groups in memory."""
    tree = {
        "recipe": {"use": "bytes_lm", "width": 256, "depth": 1, "heads": 4, "context": 32, "max_bytes": 20_000},
        "batch": {"reference": 16, "total": 16, "micro": 4},
        "optim": {"name": "adamw", "lr": 0.001},
        "scaling": {"warmup_samples": 32},
        "schedule": {"samples": 320},
        "run": {"dir": str(folder / name / "run")},
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(tree | sections))
    return path


def train(folder: Path, name: str, *flags: str, **sections: Any) -> list[float]:
    """The losses of a run on two ranks."""
    run_ranks(2, ["harness", str(run_file(folder, name, **sections)), *flags], folder)
    return [line["train/loss"] for line in journal(folder / name, "step")]


@pytest.mark.nvme
def test_a_run_with_its_moments_on_disk_is_the_same_run_and_its_checkpoint_fits_any_other(tmp_path: Path) -> None:
    disk = {"backend": DISK | {"nvme_path": str(tmp_path / "disk")}}
    whole = train(tmp_path, "whole")
    halves = train(tmp_path, "disk_run", "--run.stop_after_steps", "10", **disk)
    kept = [f.stat().st_size for f in (tmp_path / "disk").rglob("*.swp")]
    assert sum(kept) > 8 * 2**20, "weights and two moments of 860,000 parameters"
    (started,) = journal(tmp_path / "disk_run", "start")
    assert started["parameters"] == journal(tmp_path / "whole", "start")[0]["parameters"] > 800_000
    halves = train(tmp_path, "disk_run", **disk)
    assert halves == pytest.approx(whole, rel=1e-5)
    train(tmp_path, "other", "--run.stop_after_steps", "10", **disk)
    assert train(tmp_path, "other") == pytest.approx(whole, rel=1e-5), "from disk to ddp"
    train(tmp_path, "third", "--run.stop_after_steps", "10")
    assert train(tmp_path, "third", **disk) == pytest.approx(whole, rel=1e-5), "from ddp to disk"


@pytest.mark.parametrize(
    ("backend", "said"),
    [
        ({"name": "zero3", "nvme_path": "/x"}, "backend.nvme_path: is given, but nothing is offloaded; set backend.offload"),
        ({"name": "zero2", "offload": "optimizer", "nvme_path": "/x"}, "backend.nvme_path: is /x, but backend.name: zero2 has no"),
    ],
)
def test_what_has_no_disk_is_refused(tmp_path: Path, backend: dict[str, str], said: str) -> None:
    config = decode(json.loads(run_file(tmp_path, "run", backend=backend).read_text()))
    with pytest.raises(UserError, match=said):
        plan(config, World(2), 1000)
