"""A series that may be of any length is kept in memory that does not grow: evenly, and with its last row."""

from functools import partial
from itertools import pairwise
from operator import le

from hypothesis import given
from hypothesis import strategies as st

from harness.analysis.every_nth import EveryNth


@given(st.integers(0, 300), st.integers(1, 20))
def test_a_short_series_is_whole_and_a_long_one_even(length: int, most: int) -> None:
    series = EveryNth[int](most)
    for row in range(length):
        series.add(row)
    rows = series.rows()
    assert len(rows) <= most + 1
    assert rows[-1:] == list(range(length))[-1:], "the last row"
    if length <= most:
        assert rows == list(range(length))
    gaps = {later - row for row, later in pairwise(rows[:-1])}
    assert len(gaps) <= 1, "evenly"


@given(st.lists(st.integers(0, 40), max_size=200), st.integers(1, 20))
def test_rows_that_are_told_again_are_dropped_before(told: list[int], most: int) -> None:
    """As after a restart: samples go back, and every row from there on is replaced."""
    series = EveryNth[int](most)
    for row in told:
        series.drop_while(partial(le, row))
        series.add(row)
        rows = series.rows()
        assert rows == sorted(set(rows))
        assert rows[-1] == row
        assert len(rows) <= most + 1
