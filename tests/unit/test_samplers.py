"""The order as samplers of torch: on any number of ranks the samples of each step, and one number to go on from."""

from collections import Counter
from itertools import chain
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from harness import OrderBatchSampler, OrderSampler, UserError
from harness.data.sample_order import Order
from harness.data.shuffles import BlockShuffle

N = 100


def steps(world: int, start: int = 0, stop: int = 2 * N, batch: int = 12, micro: int | None = None) -> list[list[int]]:
    """The samples of each step over all ranks, sorted."""
    ranks = []
    for rank in range(world):
        sampler = OrderBatchSampler(N, batch, stop, rank=rank, world=world, micro=micro, seed=3)
        sampler.load_state_dict({"samples": start})
        expected = len(sampler)
        got = list(sampler)
        assert len(got) == expected
        each = batch // world // (micro or batch // world)
        ranks.append([list(chain.from_iterable(got[i : i + each])) for i in range(0, len(got), each)])
    return [sorted(i for part in parts for i in part) for parts in zip(*ranks, strict=True)]


def test_a_step_has_the_same_samples_on_any_number_of_ranks_and_they_are_a_run_s_own() -> None:
    alone = steps(1)
    assert alone == [sorted(Order(N, 3).take(at, at + 12).tolist()) for at in range(0, 192, 12)]
    assert steps(2) == steps(3) == steps(4, micro=1) == alone


def test_one_number_goes_on_on_other_ranks_and_nothing_is_lost_or_repeated() -> None:
    taken = steps(2, 0, 48) + steps(4, 48, 84) + steps(1, 84, 100, batch=8)
    assert Counter(i for step in taken for i in step) == Counter(range(N))


def test_a_loader_takes_either_and_tells_where_it_is() -> None:
    data: Any = TensorDataset(torch.arange(N))
    sampler = OrderBatchSampler(Order(N, 3, BlockShuffle(N, 10, 3)), 10, N)
    rows = DataLoader(data, batch_sampler=sampler)
    first = [batch[0].tolist() for batch, _ in zip(rows, range(4), strict=False)]
    assert sampler.state_dict() == sampler.state_after(len(first) + 1) == {"samples": 50}
    again = OrderBatchSampler(Order(N, 3, BlockShuffle(N, 10, 3)), 10, N)
    again.load_state_dict(sampler.state_after(4))
    rest = [batch[0].tolist() for batch in DataLoader(data, sampler=OrderSampler(again), batch_size=10)]
    assert sorted(i for batch in first + rest for i in batch) == list(range(N))
    assert again.state_dict() == {"samples": N}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch": 10, "world": 4}, "batch: 10 does not split over 4 ranks; give a multiple of 4"),
        ({"batch": 12, "world": 2, "micro": 4}, "micro: 4 does not divide a rank's share of 6 samples"),
        ({"batch": 12, "world": 2, "rank": 2}, "rank: is 2 of 2 ranks; give one from 0 to 1"),
    ],
)
def test_what_does_not_split_is_refused(options: dict[str, int], said: str) -> None:
    with pytest.raises(UserError, match=said):
        OrderBatchSampler(N, samples=N, **options)
