"""Beyond this machine: at 16,384 ranks nothing grows that need not, shown with torch's fake process group and by counting bytes."""

import json
import math
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from harness.config.loader import load
from harness.data.sample_order import Order, step_shards
from harness.engine.fsdp import fsdp_mesh
from harness.engine.window_meters import Meters
from harness.plan.plan import plan
from harness.plan.run_files import run_files
from harness.plan.world import World
from launch.processes.command import accelerate_file
from tests.support.processes import ROOT, environ

DIGITS = ROOT / "configs" / "digits.yaml"


@contextmanager
def fake_group(ranks: int, rank: int = 0) -> Iterator[None]:
    """A process group of which only this process is there: collectives leave tensors as they are."""
    dist.init_process_group("fake", rank=rank, world_size=ranks, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def test_a_plan_for_100_000_ranks_and_a_billion_samples_is_quick_and_small() -> None:
    """The command of a user, in a process of its own: 200 MB at most. Its time is told by `widebatch plan`'s own test."""
    argv = ["plan", str(DIGITS), "--gpus", "100000", "--nodes", "12500", "--recipe.samples", "1000000000", "--json"]
    code = (
        "import sys\nfrom launch.cli import main\n"
        f"status = main({argv!r})\n"
        "print([line.split()[1] for line in open('/proc/self/status') if 'VmHWM' in line][0], file=sys.stderr)\nsys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ(), cwd=ROOT, check=True)
    assert json.loads(done.stdout)["world_size"] == 100_000
    assert int(done.stderr.splitlines()[-1]) < 200_000, "KiB"


def grown(ranks: int) -> int:
    """Bytes that Python holds at most while the last of `ranks` ranks takes the first 3 steps of an epoch of a billion samples."""
    order = Order(10**9, seed=1)
    tracemalloc.start()
    for shards in islice(step_shards(0, 10**9, 8 * ranks, 8, ranks, ranks - 1, ranks), 3):
        for chunk in shards.chunks:
            assert len(np.unique(order.take(chunk.start, chunk.start + chunk.count))) == 8
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


def test_the_sample_order_of_a_rank_costs_the_same_on_any_world() -> None:
    grown(16)  # numpy imports some of itself at first use
    assert grown(16_384) < 1.2 * grown(16)
    assert grown(16_384) < 100_000


def test_the_files_of_a_run_say_nothing_rank_by_rank() -> None:
    config, sizes = load(DIGITS), []
    for ranks in (8, 16_384):
        world = World(ranks, ranks // 8)
        planned = plan(config, world)
        sizes.append(sum(map(len, [*run_files(config, planned).values(), accelerate_file(planned, world)])))
    assert sizes[1] < sizes[0] + 500


@pytest.mark.parametrize("ranks", [1_024, 16_384])
def test_device_meshes_are_laid_over_any_world(ranks: int) -> None:
    with fake_group(ranks, rank=ranks - 1):
        assert fsdp_mesh("cpu", ranks, 1).shape == (ranks,)
        nodes = fsdp_mesh("cpu", ranks, ranks // 8)
        assert nodes.shape == (ranks // 8, 8)
        assert list(nodes.get_coordinate() or ()) == [ranks // 8 - 1, 7]


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_ranks_largest_loss_is_over_the_steps_of_finite_loss(ranks: int) -> None:
    """As train/loss is. Each rank sees its own loss; that a step was bad is known of all ranks' loss alone."""
    nan = math.nan
    everyones = (6.0, nan, nan, 9.0) if ranks == 1 else (8.0, nan, nan, 10.0)
    with fake_group(ranks):
        meters = Meters(torch.device("cpu"), 0, ranks, ["group0"])
        for own, whole in zip((6.0, nan, 900.0, 9.0), everyones, strict=True):
            meters.step_done((torch.tensor(own), 3.0, 0.0))
            meters.rows.add((torch.tensor(whole), 3.0, *(1.0,) * 5))
        assert meters.read(0.0, 0, 1).loss_max_rank == 2.5
        meters.step_done((torch.tensor(nan), 3.0, 0.0))
        meters.rows.add((torch.tensor(nan), 3.0, *(1.0,) * 5))
        assert math.isnan(meters.read(0.0, 0, 1).loss_max_rank)


def sent(ranks: int, labels: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many numbers each collective of a window's reading carries."""
    seen: list[int] = []
    whole = dist.all_reduce

    def counted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(tensor.numel())
        return whole(tensor, *args, **kwargs)

    monkeypatch.setattr(dist, "all_reduce", counted)
    with fake_group(ranks):
        meters = Meters(torch.device("cpu"), 0, ranks, [f"group{n}" for n in range(labels)])
        meters.step_done((6.0, 3.0, 0.0))
        meters.rows.add((1.0,) * 7)
        reading = meters.read(0.0, 0, 1)
    assert reading.loss_max_rank == 2
    assert reading.ranks.slowest == 0
    monkeypatch.setattr(dist, "all_reduce", whole)
    return seen


def test_the_metrics_of_all_ranks_are_as_many_numbers_on_any_world(monkeypatch: pytest.MonkeyPatch) -> None:
    two, many = sent(2, 2, monkeypatch), sent(16_384, 2, monkeypatch)
    assert two == many
    assert sum(many) < 48
    assert sum(sent(16_384, 1_000, monkeypatch)) < 4_040, "norms of a thousand layers"
