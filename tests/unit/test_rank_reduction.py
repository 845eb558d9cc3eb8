"""What all ranks say of a window meets in a few numbers, as many on 16,384 ranks as on two, and still names the slowest."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.telemetry.cpu_wait import CpuWait
from harness.telemetry.measurements import HostRow, RanksRow
from harness.telemetry.rank_reduction import MOST_RANKS, busiest, highs_of, met, sums_of, who
from harness.telemetry.straggler import Straggler
from harness.telemetry.window_metrics import skew
from harness.training.alerts import is_shared

SECONDS = st.floats(0, 1e6, width=32)


def row(busy: float = 1.0, wait: float = 0.1, data: float = 0.0, computed: float = 8) -> HostRow:
    """A rank's row."""
    return HostRow(data, wait, busy, 2.0, 3.0, 4.0, 1.0, 0.0, computed, 0.0)


def meet(rows: list[HostRow]) -> RanksRow:
    """What the two reductions give."""
    sums = [sum(column) for column in zip(*map(sums_of, rows), strict=True)]
    highs = [max(column) for column in zip(*(highs_of(r, rank) for rank, r in enumerate(rows)), strict=True)]
    return met(sums, highs, len(rows))


@given(st.lists(SECONDS, min_size=1, max_size=40))
def test_the_slowest_rank_is_named_whatever_the_others_did(busy: list[float]) -> None:
    found = meet([row(b) for b in busy])
    assert found.slowest == busy.index(max(busy))
    assert found.busy_s == max(busy)


@given(SECONDS, st.integers(0, MOST_RANKS - 1))
def test_a_rank_and_its_time_travel_exactly_in_one_number(busy: float, rank: int) -> None:
    assert who(busiest(busy, rank)) == (busy, rank)
    assert busiest(busy, rank) == int(busiest(busy, rank))


def test_a_clock_that_ran_backwards_is_not_the_slowest() -> None:
    assert meet([row(-1e-6), row(0.5)]).slowest == 1


@pytest.mark.parametrize("ranks", [2, 4, 1000])
def test_one_straggler_shows_its_whole_delay_on_any_world(ranks: int) -> None:
    told = skew(meet([row(1.0)] * (ranks - 1) + [row(1.5)]))
    assert told["reliability/rank_skew_pct"] == pytest.approx(50)
    assert told["reliability/slowest_rank"] == ranks - 1


def test_waits_memory_and_counts_meet_as_the_table_of_metrics_says() -> None:
    found = meet([row(wait=0.1, data=0.3, computed=8), row(wait=0.3, data=0.1, computed=4)])
    assert (found.data_wait_s, found.comm_wait_s, found.computed) == pytest.approx((0.3, 0.2, 12))
    assert (found.host_rss_gib, found.gpu_allocated_gib, found.gpu_reserved_gib, found.alloc_retries) == (2, 3, 4, 2)


def test_a_backend_that_cannot_tell_waiting_names_nobody() -> None:
    assert set(skew(meet([row(wait=math.nan), row(wait=math.nan)])).values()) == {None}
    assert skew(meet([row()]))["reliability/rank_skew_pct"] == 0


def test_a_machine_is_shared_where_any_rank_on_a_cpu_waited_for_it_and_its_speed_says_nothing() -> None:
    waited = meet([row(), replace(row(), cpu_wait_s=0.4), row()])
    assert is_shared("cpu", waited, 2.0)
    assert not is_shared("cuda", waited, 2.0), "there the wait may be what is wrong"
    assert not is_shared("cpu", waited, 20.0)


def test_the_time_that_others_had_the_cpu_is_the_kernel_s(tmp_path: Path) -> None:
    stat = tmp_path / "schedstat"
    stat.write_text("5000 1000000000 7\n")
    clock = CpuWait(stat)
    stat.write_text("9000 1250000000 8\n")
    assert (clock.lap(), clock.lap()) == (0.25, 0.0)
    assert CpuWait(tmp_path / "none").lap() == 0.0


def words(*windows: RanksRow) -> list[str]:
    """What is said of each of some windows of 10 steps in 2 seconds."""
    known, said = Straggler(), []
    for window in windows:
        known, text = known.after(window, 10, 2.0)
        said.append(text)
    return said


def test_a_rank_that_is_slow_three_times_in_a_row_is_named_with_what_it_costs() -> None:
    slow = meet([row(0.5), row(0.5), row(1.5), row(0.5)])
    text = "rank 2 is a straggler: 150 ms a step, the others 50; that is 50 % of the time, for 3 windows"
    assert words(slow, slow, slow) == ["", "", text]


def test_one_slow_window_another_slow_rank_or_a_short_delay_is_chance() -> None:
    first, second, even = meet([row(1.5), row(0.5)]), meet([row(0.5), row(1.5)]), meet([row(0.5), row(0.6)])
    assert words(first, first, even, first, first, second, second) == [""] * 7
    assert words(*[even] * 5) == [""] * 5
    assert words(*[meet([row(1.5, math.nan), row(0.5, math.nan)])] * 5) == [""] * 5, "waiting is not told from work there"
    assert words(*[meet([row(1.5)])] * 5) == [""] * 5, "a rank alone"
