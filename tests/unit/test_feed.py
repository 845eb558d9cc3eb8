"""Batches of a Table: the rows that the order says, laid as if each batch were gathered alone, many steps in one slice."""

import pytest
import torch
from torch import Tensor

from harness.data import feed as data
from harness.data.feed import ALIGNED, Feed, Table
from harness.data.sample_order import Order, keys, step_shards

SAMPLES = 700


def table(width: int) -> Table:
    return Table({"x": torch.randn(SAMPLES, width), "y": torch.arange(SAMPLES)})


def feed(whole: Table) -> Feed:
    return Feed(whole, order=Order(SAMPLES, 5), device=torch.device("cpu"), dtype=torch.float32)


@pytest.mark.parametrize("width", [1, 16])
@pytest.mark.parametrize(("micro", "world", "processes"), [(1, 1, 1), (7, 1, 1), (16, 1, 1), (16, 4, 1), (8, 4, 2), (5, 3, 3)])
def test_each_pass_gets_its_own_rows_where_torch_would_lay_them(width: int, micro: int, world: int, processes: int) -> None:
    whole = Table(table(width).columns | {"z": torch.randint(256, (SAMPLES, 3, 5), dtype=torch.uint8)})
    order = Order(SAMPLES, 5)
    for process in range(processes):
        asked = list(step_shards(3, 2 * SAMPLES, micro * world * 2, micro, world, process, processes))
        got = list(feed(whole).steps(asked))
        assert [shards for shards, _ in got] == asked
        for shards, micros in got:
            assert tuple(m.chunk for m in micros) == shards.chunks
            for m in micros:
                rows = whole.take(torch.from_numpy(order.take(m.chunk.start, m.chunk.start + m.chunk.count)))
                assert all(torch.equal(m.batch[name], rows[name]) for name in rows)
                assert all(part.data_ptr() % ALIGNED == 0 and part.is_contiguous() for part in m.batch.values())


@pytest.mark.parametrize("width", [1, 16])
def test_each_sample_s_random_key_is_of_its_place_in_the_stream_however_many_are_gathered_at_once(width: int) -> None:
    augmented = Feed(table(width), order=Order(SAMPLES, 5), device=torch.device("cpu"), dtype=torch.float32, key_seed=9)
    for _, micros in augmented.steps(step_shards(3, 2 * SAMPLES, 32, 8, 2, 1, 2)):
        for m in micros:
            expected = torch.from_numpy(keys(9, m.chunk.start, m.chunk.start + m.chunk.count))
            assert torch.equal(m.batch["key"], expected)


def test_many_steps_are_one_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    slices: list[int] = []
    take = Table.take

    def counted(self: Table, indices: Tensor) -> dict[str, Tensor]:
        slices.append(len(indices))
        return take(self, indices)

    monkeypatch.setattr(Table, "take", counted)
    monkeypatch.setattr(data, "AHEAD_BYTES", 16 * 8 * (64 + 8))
    assert len(list(feed(table(16)).steps(step_shards(0, 16 * 20, 16, 16, 1, 0, 1)))) == 20
    assert slices == [16 * 9, 16 * 9, 16 * 2], "eight steps ahead"
    slices.clear()
    list(feed(table(1)).steps(step_shards(0, 21, 7, 7, 1, 0, 1)))
    assert slices == [7 * 3], "of an odd width too"
    slices.clear()
    monkeypatch.setattr(data, "AHEAD_STEPS", 1)
    list(feed(table(1)).steps(step_shards(0, 21, 7, 7, 1, 0, 1)))
    assert slices == [7 * 2, 7], "one step ahead"
