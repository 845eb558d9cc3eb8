"""The shipped run files decode, plan on any world, and have the header that tells what to expect."""

import os
from pathlib import Path

import pytest

from harness.plan.decode import load
from harness.plan.plan import plan
from harness.plan.world import World
from harness.recipes.images import Images
from tests.dist.processes import ROOT

FILES = sorted((ROOT / "configs").glob("*.yaml"))
FASHION = Path("/usr/share/datasets/fashion-mnist")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_each_run_file_plans_on_one_and_on_64_ranks_and_says_what_to_expect(path: Path) -> None:
    config = load(path)
    one, many = plan(config, World(1)), plan(config, World(64))
    assert one.ratio == 1
    assert not one.warnings or one.rule == "adam"
    assert many.global_batch == 64 * one.global_batch
    assert many.total_samples == one.total_samples
    header = path.read_text().lower().partition("\nrecipe:")[0]
    assert "widebatch" in header
    assert "expect" in header
    assert all(line.startswith("#") for line in header.splitlines())


@pytest.mark.skipif(not FASHION.exists() and "CI" not in os.environ, reason="Debian package dataset-fashion-mnist is not installed")
def test_debian_s_fashion_mnist_is_read_as_it_is() -> None:
    images = Images(root=str(FASHION))
    assert len(images.data("train")) == 60_000
    assert len(images.data("valid")) == 10_000
