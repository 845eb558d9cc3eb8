"""The order of a run for loops of one's own: samplers for torch's DataLoader, whose state is one number."""

from collections.abc import Iterator, Mapping
from typing import final

from torch.utils.data import Sampler

from harness.config.errors import UserError
from harness.data.sample_order import Order, SampleOrder, step_shards


@final
class OrderBatchSampler(Sampler[list[int]]):
    """The batches of one rank, as `DataLoader(data, batch_sampler=...)` takes them.

    Each step takes the next `batch` samples of one endless stream over the data, the same for any number of ranks, from the
    samples seen so far to `samples` in all; a last step that would be short is left out. A rank gets its share of a step in pieces
    of `micro` (unset: all of it at once), whole steps one after another.

    `order` is the number of samples in the data, shuffled by `seed`, or a SampleOrder; `rank` (from 0) is one of `world` ranks.
    Raises UserError where `batch` does not split over the ranks, or `micro` does not divide a rank's share.

    `state_dict` is the samples seen before the step that is handed out next. A loader with workers asks for batches ahead: save
    `state_after(steps)` then, with the steps that were trained since the sampler was made or loaded.
    """

    def __init__(
        self,
        order: SampleOrder | int,
        batch: int,
        samples: int,
        *,
        rank: int = 0,
        world: int = 1,
        micro: int | None = None,
        seed: int = 0,
    ) -> None:
        """`order`: of a size, all shuffled by `seed`, or a SampleOrder. Raises UserError if a batch does not split."""
        share, rest = divmod(batch, world)
        if rest or not share:
            raise UserError("batch", f"{batch} does not split over {world} ranks", f"give a multiple of {world}")
        if share % (micro or share):
            raise UserError("micro", f"{micro} does not divide a rank's share of {share} samples", "give a divisor of it")
        if not 0 <= rank < world:
            raise UserError("rank", f"is {rank} of {world} ranks", f"give one from 0 to {world - 1}")
        self._order = Order(order, seed) if isinstance(order, int) else order
        self._batch, self._stop, self._micro, self._rank, self._world = batch, samples, micro or share, rank, world
        self._samples = self._loaded = 0

    def __iter__(self) -> Iterator[list[int]]:
        """The batches from the current state on."""
        stop = self._stop - (self._stop - self._samples) % self._batch
        for shards in step_shards(self._samples, stop, self._batch, self._micro, self._world, self._rank, self._world):
            self._samples = shards.start + shards.samples
            for chunk in shards.chunks:
                yield self._order.take(chunk.start, chunk.start + chunk.count).tolist()

    def __len__(self) -> int:
        """How many batches are left from the current state."""
        return max(self._stop - self._samples, 0) // self._batch * (self._batch // self._world // self._micro)

    def state_dict(self) -> dict[str, int]:
        """One number, the same on every rank: it may be loaded on any other number of them, and with another batch."""
        return {"samples": self._samples}

    def state_after(self, steps: int) -> dict[str, int]:
        """The state after so many steps since this sampler was made or its state was loaded."""
        return {"samples": self._loaded + steps * self._batch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from a state that `state_dict` or `state_after` gave."""
        self._samples = self._loaded = state["samples"]


@final
class OrderSampler(Sampler[int]):
    """The samples of one rank in the order of `batches`, for `DataLoader(data, sampler=..., batch_size=...)`."""

    def __init__(self, batches: OrderBatchSampler) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[int]:
        for batch in self._batches:
            yield from batch

    def state_dict(self) -> dict[str, int]:
        """See OrderBatchSampler.state_dict."""
        return self._batches.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from a state that `state_dict` or `state_after` gave."""
        self._batches.load_state_dict(state)
