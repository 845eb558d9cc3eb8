"""What a step costs over the loop that one writes by hand, everything on: counts, which no load of the machine changes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bench.peers import ours
from tests.bench.peers.counting import Cost, counted
from tests.bench.peers.work import WORKS, Hand


@pytest.fixture(scope="module")
def hand() -> Cost:
    """The cost of the loop that one writes by hand."""
    work = WORKS["tiny"]
    batches, cost = counted(work.batches())
    Hand(work, batches).run()
    return cost()


def our_cost(folder: Path, every: int) -> Cost:
    """Ours, where a window is `every` steps."""
    found = []

    def hook(batches: Iterator[Any]) -> Iterator[Any]:
        feed, cost = counted(batches)
        found.append(cost)
        return feed

    ours.run(WORKS["tiny"], hook, folder, every=every)
    return found[0]()


def test_a_step_between_two_windows_costs_no_more_than_the_hand_loop_s(tmp_path: Path, hand: Cost) -> None:
    found = our_cost(tmp_path, 1000)
    assert found.calls <= hand.calls, "Python calls"
    assert found.operations <= hand.operations + 2
    assert found.syncs == 0


def test_a_window_s_telling_is_bounded(tmp_path: Path, hand: Cost) -> None:
    found = our_cost(tmp_path, 10)
    assert found.calls <= hand.calls + 60, "Python calls a step, all of the window's told ones included"
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert {line["throughput/host_sync_count"] for line in lines if line["event"] == "window"} == {1.0}, "one read a window"
