"""Shuffles are bijections that go both ways; in two levels they stay local, and mix within a window."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.sample_order import Order, step_shards
from harness.data.shuffles import BlockShuffle, FullShuffle, derive, permute, unpermute

BILLION = 10**9
FULL = [923, 857, 1062, 1337, 1244, 965, 1292, 586]
LARGE = [484184508, 412732941, 394960320, 883213772]
"""What version 0.1 gave."""


@given(n=st.integers(1, 10**12), key=st.integers(0, 2**63), at=st.floats(0, 1, exclude_max=True))
def test_every_image_leads_back_to_its_position(n: int, key: int, at: float) -> None:
    position = np.array([int(at * n), 0, n - 1])
    assert np.array_equal(unpermute(n, key, permute(n, key, position)), position)


@settings(max_examples=20)
@given(n=st.integers(1, 200), block=st.integers(3, 60), window=st.integers(1, 9), key=st.integers(0, 2**63))
def test_the_blocks_shuffle_is_a_bijection_that_goes_both_ways(n: int, block: int, window: int, key: int) -> None:
    shuffle, every = BlockShuffle(n, block, window), np.arange(n)
    images = shuffle.images(key, every)
    assert np.array_equal(np.sort(images), every)
    assert np.array_equal(shuffle.positions(key, images), every)
    assert np.array_equal(shuffle.images(key, every[n // 2 :]), images[n // 2 :]), "however it is read"
    assert np.array_equal(every, np.arange(n)), "its input stays as it is"


def test_a_window_reads_few_blocks_and_each_block_in_one_window() -> None:
    n, block, window = 100_000, 100, 20
    images = BlockShuffle(n, block, window).images(7, np.arange(n)).reshape(-1, block * window)
    blocks = [set((part // block).tolist()) for part in images]
    assert {len(found) for found in blocks} == {window}
    assert len(set.union(*blocks)) == sum(map(len, blocks)) == n // block


def test_a_short_last_block_leaves_few_samples_elsewhere() -> None:
    """Of 1,000 blocks the last has 3 samples of 100: at most 97 positions have a sample of another window's block."""
    n, block, window = 99_903, 100, 20
    images = BlockShuffle(n, block, window).images(7, np.arange(n))
    stray = 0
    for start in range(0, n, block * window):
        _, counts = np.unique(images[start : start + block * window] // block, return_counts=True)
        stray += int(np.sort(counts)[:-window].sum())
    assert stray <= 97


def test_blocks_are_as_far_apart_as_by_chance_and_so_are_samples_in_a_window() -> None:
    """In a random shuffle half of the neighbours rise, and their mean distance is a third of the range."""
    n, block, window = 200_000, 100, 50
    first = BlockShuffle(n, block, window).images(11, np.arange(block * window))
    blocks = BlockShuffle(n, block, 1).images(11, np.arange(0, n, block)) // block
    for order, size in ((np.argsort(np.argsort(first)), block * window), (blocks, n // block)):
        steps = np.diff(order)
        assert abs(float((steps > 0).mean()) - 0.5) < 0.03
        assert abs(float(np.abs(steps).mean()) / size - 1 / 3) < 0.02


@pytest.mark.parametrize("shuffle", [FullShuffle(BILLION), BlockShuffle(BILLION, 1000, 64)])
def test_a_billion_samples_cost_no_memory_to_read_or_to_find(shuffle: FullShuffle | BlockShuffle) -> None:
    tracemalloc.start()
    try:
        order = Order(BILLION, 0, shuffle)
        samples = order.take(BILLION - 2000, BILLION + 2000)
        found = order.positions(int(samples[5]), 3 * BILLION)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10e6
    assert len(found) == 3
    assert found[0] == BILLION - 2000 + 5
    assert [int(order.take(p, p + 1)[0]) for p in found] == [int(samples[5])] * 3


@pytest.mark.parametrize("blocks", [False, True])
def test_positions_are_those_of_the_stream_over_several_epochs(blocks: bool) -> None:
    order = Order(101, 5, BlockShuffle(101, 10, 3) if blocks else None)
    stream = order.take(0, 350)
    for sample in range(101):
        assert order.positions(sample, 350) == np.flatnonzero(stream == sample).tolist()


def test_the_full_order_is_that_of_before() -> None:
    """Recorded: runs that began under an earlier version go on in their order."""
    assert Order(1437, derive(0, 3)).take(0, 8).tolist() == FULL
    assert Order(10**9, 1).take(10**9 - 2, 10**9 + 2).tolist() == LARGE


@pytest.mark.parametrize("blocks", [False, True])
def test_an_epoch_over_changing_worlds_has_every_sample_once(blocks: bool) -> None:
    """Two ranks, then four, then one, each resuming from the samples seen."""
    n = 1000
    order = Order(n, 3, BlockShuffle(n, 64, 4) if blocks else None)
    seen: list[int] = []
    for start, stop, world in ((0, 336, 2), (336, 624, 4), (624, n, 1)):
        for rank in range(world):
            for shards in step_shards(start, stop, 48, 6, world, rank, world):
                seen += [i for c in shards.chunks if not c.padding for i in order.take(c.start, c.start + c.count).tolist()]
    assert sorted(seen) == list(range(n))
