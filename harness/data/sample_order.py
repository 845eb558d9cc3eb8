"""Which samples a step takes: a pure function of (seed, epoch, position), the same on any layout of ranks.

The run reads one endless stream of positions 0, 1, 2, ...; position p is sample p % n of epoch p // n, shuffled. A step
takes the next global_batch positions. Its positions are cut into chunks of micro_batch; chunk c goes to pass c // world of
rank c % world. So the chunks themselves do not depend on the number of ranks, and resuming needs one number: samples seen.

The shuffle is a keyed bijection of range(n) (shuffles.py), so that no worker holds a list of the data set, any position is found
in O(1), and so is the place of any sample.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import final

import numpy as np
from msgspec import Struct

from harness.data.shuffles import FullShuffle, Indices, Shuffle
from harness.data.shuffles import derive as derive
from harness.data.shuffles import keys as keys

_BLOCK, _LEAST = 1 << 14, 1 << 8


class SampleOrder(ABC):
    """An endless stream over `n` samples of a data set, a pure function of its seed; the same on any world."""

    n: int

    @abstractmethod
    def take(self, start: int, stop: int) -> Indices:
        """The samples at stream positions [start, stop), across epochs. int64 [stop - start]."""

    @abstractmethod
    def positions(self, sample: int, stop: int) -> list[int]:
        """Where `sample` is in the stream before position `stop`, in order: the inverse of `take`."""


@final
class Order(SampleOrder):
    """The shuffled stream over one data set. `take` keeps one block, so reading forward costs O(1) a sample.

    A block that was read through is followed by one of twice the length; a leap past it, as one rank of thousands makes at each
    step, by a short one, so that little work is wasted.
    """

    def __init__(self, n: int, seed: int, shuffle: Shuffle | None = None) -> None:
        """`shuffle`: that of each epoch; None: all samples among one another."""
        self.n = n
        self.seed = seed
        self._shuffle = shuffle or FullShuffle(n)
        self._block: tuple[int, int, Indices] = (0, 0, np.empty(0, np.int64))
        self._length = _LEAST

    def take(self, start: int, stop: int) -> Indices:
        """See SampleOrder.take."""
        parts = []
        while start < stop:
            first, last, indices = self._block
            if not first <= start < last:
                near = last <= start < last + self._length
                self._length = min(2 * self._length, _BLOCK) if near else _LEAST
                first, last, indices = self._block = self._make(start)
            end = min(stop, last)
            parts.append(indices[start - first : end - first])
            start = end
        return parts[0] if len(parts) == 1 else np.concatenate([*parts, np.empty(0, np.int64)])

    def positions(self, sample: int, stop: int) -> list[int]:
        """See SampleOrder.positions."""
        image = np.array([sample], np.int64)
        epochs = range(-(-stop // self.n))
        found = [e * self.n + int(self._shuffle.positions(derive(self.seed, e), image)[0]) for e in epochs]
        return [position for position in found if position < stop]

    def _make(self, start: int) -> tuple[int, int, Indices]:
        epoch, within = divmod(start, self.n)
        stop = min(within + self._length, self.n)
        indices = self._shuffle.images(derive(self.seed, epoch), np.arange(within, stop, dtype=np.int64))
        return start, start + stop - within, indices


class Chunk(Struct, frozen=True):
    """One forward pass of one rank: stream positions [start, start + count). `padding`: run it with weight zero.

    A padding pass stands where a short last batch leaves a rank without samples while others still have some.
    """

    start: int
    count: int
    padding: bool = False


class StepShards(Struct, frozen=True):
    """The chunks of one optimizer step for one process: `samples` positions from `start` over all ranks."""

    start: int
    samples: int
    chunks: tuple[Chunk, ...]


def shard_step(start: int, samples: int, micro: int, world: int, process: int, processes: int) -> StepShards:
    """Cut one step's positions into chunks and give `process` those of the ranks it simulates, in order of passes."""
    total = -(-samples // micro)
    passes = -(-total // world)
    chunks = []
    for number in range(passes):
        for rank in range(process, world, processes):
            c = number * world + rank
            if c < total:
                chunks.append(Chunk(start + c * micro, min(micro, samples - c * micro)))
            else:
                chunks.append(Chunk(start, min(micro, samples), padding=True))
    return StepShards(start, samples, tuple(chunks))


def step_shards(start: int, stop: int, batch: int, micro: int, world: int, process: int, processes: int) -> Iterator[StepShards]:
    """The steps of a process from stream position `start` to `stop`: full batches, then the short rest."""
    while start < stop:
        samples = min(batch, stop - start)
        yield shard_step(start, samples, micro, world, process, processes)
        start += samples
