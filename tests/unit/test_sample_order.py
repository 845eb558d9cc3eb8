"""Which samples a step takes is a pure function of seed and position: each sample once an epoch, the same on any layout."""

import tracemalloc
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data.sample_order import Order, StepShards, derive, keys, shard_step, step_shards
from harness.data.shuffles import mix, permute

LAYOUTS = [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4), (8, 2), (8, 8)]
"""(world, processes)"""


def positions(step: Sequence[StepShards]) -> list[int]:
    """All stream positions that a step's processes take, padding passes left out, sorted."""
    return sorted(p for d in step for c in d.chunks if not c.padding for p in range(c.start, c.start + c.count))


@given(n=st.integers(1, 5000), key=st.integers(0, 2**63))
def test_the_shuffle_is_a_bijection(n: int, key: int) -> None:
    image = permute(n, key, np.arange(n))
    assert np.array_equal(np.sort(image), np.arange(n))


@pytest.mark.parametrize("n", [1, 2, 3, 255, 256, 257, 65535, 65536, 65537, 100_003])
def test_the_shuffle_is_a_bijection_around_powers_of_two(n: int) -> None:
    image = permute(n, 7, np.arange(n))
    assert np.array_equal(np.sort(image), np.arange(n))


@given(n=st.integers(1, 10**12), key=st.integers(0, 2**63), at=st.floats(0, 1, exclude_max=True))
def test_an_image_does_not_depend_on_its_neighbours(n: int, key: int, at: float) -> None:
    position = int(at * n)
    alone = permute(n, key, np.array([position]))
    among = permute(n, key, np.array([0, position, n - 1]))
    assert 0 <= alone[0] < n
    assert alone[0] == among[1]


@pytest.mark.parametrize("n", [1, 100, 256, 257, 1437, 5000])
def test_a_position_has_the_same_image_whether_few_or_all_are_asked_for(n: int) -> None:
    """Of all, the walks are looked up in a table."""
    alone = [permute(n, 7, np.array([position]))[0] for position in range(n)]
    assert permute(n, 7, np.arange(n)).tolist() == alone


def test_the_shuffle_leaves_its_input_alone() -> None:
    given_positions = np.arange(100)
    permute(100, 3, given_positions)
    assert np.array_equal(given_positions, np.arange(100))


@given(n=st.integers(1, 300), seed=st.integers(0, 2**32 - 1), epochs=st.integers(1, 4))
def test_each_epoch_has_each_sample_once(n: int, seed: int, epochs: int) -> None:
    stream = Order(n, seed).take(0, n * epochs)
    assert all(sorted(stream[e * n : (e + 1) * n].tolist()) == list(range(n)) for e in range(epochs))


def test_epochs_and_seeds_differ() -> None:
    n = 1000
    shuffles = [Order(n, seed).take(e * n, (e + 1) * n).tolist() for seed in range(5) for e in range(5)]
    assert len({tuple(s) for s in shuffles}) == 25
    for a, b in pairwise(shuffles):
        fixed = sum(x == y for x, y in zip(a, b, strict=True))
        assert fixed < 10, "two random shuffles agree at one place on average"


def test_an_order_is_the_same_however_it_is_read() -> None:
    whole = Order(40_000, 5).take(0, 90_000)
    pieces, order, at = [], Order(40_000, 5), 0
    for size in [1, 16_383, 2, 30_000, 7, 43_607]:
        pieces.append(order.take(at, at + size))
        at += size
    assert at == 90_000
    assert np.array_equal(np.concatenate(pieces), whole)
    assert np.array_equal(order.take(12_345, 12_400), whole[12_345:12_400]), "and after going back"
    assert order.take(5, 5).size == 0


@pytest.mark.parametrize("n", [10, 37, 256])
def test_each_sample_is_as_likely_at_the_first_place(n: int) -> None:
    """Chi-square over 1500 keys, fixed, so that the test cannot flicker; the limit is mean + 5 deviations."""
    counts = Counter(int(permute(n, derive(1, k), np.array([0]))[0]) for k in range(1500))
    expected = 1500 / n
    chi2 = sum((counts[i] - expected) ** 2 / expected for i in range(n))
    assert chi2 < (n - 1) + 5 * (2 * (n - 1)) ** 0.5


def test_neighbours_are_as_likely_in_either_order_and_far_apart() -> None:
    """In a random shuffle half of the neighbours rise, and their mean distance is n/3."""
    image = Order(20_000, 11).take(0, 20_000)
    steps = np.diff(image)
    assert abs(float((steps > 0).mean()) - 0.5) < 0.02
    assert abs(float(np.abs(steps).mean()) / 20_000 - 1 / 3) < 0.01


def test_a_billion_samples_cost_no_memory() -> None:
    tracemalloc.start()
    try:
        first = Order(10**9, 0).take(0, 4096)
        last = Order(10**9, 0).take(10**9 - 10, 10**9 + 10)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10e6
    assert len(set(first.tolist())) == 4096
    assert first.min() >= 0
    assert first.max() < 10**9
    assert float(first.mean()) == pytest.approx(5e8, rel=0.05)
    assert len(last) == 20


@pytest.mark.parametrize(("world", "processes"), LAYOUTS)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_steps_samples_are_the_same_on_every_layout(world: int, processes: int, accumulate: int) -> None:
    batch, stop = 48, 48 * 3 + 17
    micro = batch // world // accumulate
    steps = list(zip(*(step_shards(0, stop, batch, micro, world, p, processes) for p in range(processes)), strict=True))
    assert [positions(s) for s in steps] == [list(range(at, min(at + batch, stop))) for at in range(0, stop, batch)]


@given(
    samples=st.integers(1, 500),
    micro=st.integers(1, 40),
    played=st.integers(1, 6),
    processes=st.integers(1, 6),
    start=st.integers(0, 10**12),
)
def test_any_deal_takes_each_position_once(samples: int, micro: int, played: int, processes: int, start: int) -> None:
    world = played * processes
    step = [shard_step(start, samples, micro, world, p, processes) for p in range(processes)]
    assert positions(step) == list(range(start, start + samples))
    assert len({len(d.chunks) for d in step}) == 1, "every process makes the same number of passes"
    assert all(0 < c.count <= micro for d in step for c in d.chunks)


@given(samples=st.integers(1, 200), micro=st.integers(1, 20))
def test_chunks_are_identical_on_every_layout_with_the_same_micro_batch(samples: int, micro: int) -> None:
    seen = set()
    for world, processes in LAYOUTS:
        step = [shard_step(100, samples, micro, world, p, processes) for p in range(processes)]
        seen.add(tuple(sorted((c.start, c.count) for d in step for c in d.chunks if not c.padding)))
    assert len(seen) == 1


def test_a_chunk_goes_to_the_rank_of_its_number() -> None:
    for rank in range(4):
        chunks = shard_step(1000, 24, 3, 4, rank, 4).chunks
        assert [c.start for c in chunks] == [1000 + 3 * rank, 1000 + 3 * (rank + 4)]


def test_one_process_plays_its_ranks_in_turn_within_a_pass() -> None:
    assert [c.start for c in shard_step(0, 24, 3, 4, 1, 2).chunks] == [3, 9, 15, 21]


def test_a_short_last_batch_has_its_true_count() -> None:
    steps = list(step_shards(0, 100, 64, 8, 4, 0, 1))
    assert [(d.start, d.samples) for d in steps] == [(0, 64), (64, 36)]
    assert [c.count for c in steps[1].chunks if not c.padding] == [8, 8, 8, 8, 4]


@given(samples=st.integers(1, 200), micro=st.integers(1, 20), world=st.integers(1, 8))
def test_ghosts_stand_exactly_where_a_rank_has_nothing_left(samples: int, micro: int, world: int) -> None:
    real = -(-samples // micro)
    for rank in range(world):
        chunks = shard_step(0, samples, micro, world, rank, world).chunks
        assert [c.padding for c in chunks] == [p * world + rank >= real for p in range(-(-real // world))]
        for c in chunks:
            assert 0 <= c.start < c.start + c.count <= samples, "a padding pass too runs on samples of its own step"


def test_a_run_resumed_at_any_step_takes_the_same_steps() -> None:
    whole = list(step_shards(0, 1000, 64, 8, 4, 1, 2))
    assert list(step_shards(64 * 5, 1000, 64, 8, 4, 1, 2)) == whole[5:]


@given(seed=st.integers(0, 2**63), start=st.integers(0, 10**12), counts=st.lists(st.integers(1, 50), min_size=1, max_size=5))
def test_keys_do_not_depend_on_chunk_borders(seed: int, start: int, counts: list[int]) -> None:
    borders = np.cumsum([start, *counts]).tolist()
    pieces = [keys(seed, a, b) for a, b in pairwise(borders)]
    assert np.array_equal(np.concatenate(pieces), keys(seed, start, borders[-1]))


def test_keys_are_all_different_and_their_bits_are_fair() -> None:
    drawn = keys(derive(3, 4), 0, 20_000)
    assert drawn.dtype == np.int64
    assert len(np.unique(drawn)) == 20_000
    ones = [(drawn.view(np.uint64) >> np.uint64(b) & np.uint64(1)).mean() for b in range(64)]
    assert max(abs(float(o) - 0.5) for o in ones) < 0.02
    assert not np.intersect1d(drawn, keys(derive(4, 4), 0, 20_000)).size


def test_derived_seeds_differ_by_purpose_order_and_seed() -> None:
    made = [derive(s, *what) for s in (0, 1) for what in ((), (0,), (1,), (0, 1), (1, 0), (0, 0))]
    assert len(set(made)) == len(made)
    assert all(0 <= m < 2**64 for m in made)


def test_mix_is_splitmix64() -> None:
    """The first outputs of the reference implementation from state 0 (its state grows by the golden gamma)."""
    gamma = 0x9E3779B97F4A7C15
    assert [mix(0), mix(gamma)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def test_the_stream_is_the_same_in_every_version() -> None:
    """A checkpoint holds a position alone: a run that continues under a later version must find the same samples there."""
    assert Order(1437, 0).take(0, 6).tolist() == [498, 54, 236, 730, 1046, 825]
    assert Order(60_000, 5).take(59_998, 60_004).tolist() == [58347, 4938, 24651, 30522, 32569, 12887]
    assert Order(10**9, 1).take(10**9 - 2, 10**9 + 2).tolist() == [484184508, 412732941, 394960320, 883213772]
    assert keys(7, 3, 5).tolist() == [3488782273388828005, 4590990482918710820]
