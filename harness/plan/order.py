"""Which samples a step takes: a pure function of (seed, epoch, position), the same on any layout of ranks.

The run reads one endless stream of positions 0, 1, 2, ...; position p is sample p % n of epoch p // n, shuffled. A step
takes the next global_batch positions. Its positions are cut into chunks of micro_batch; chunk c goes to pass c // world of
rank c % world. So the chunks themselves do not depend on the number of ranks, and resuming needs one number: samples seen.

The shuffle is a keyed bijection of range(n), a Feistel network with cycle walking (Black & Rogaway 2002), so that no
worker holds a list of the data set and any position is found in O(1).
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

Indices = NDArray[np.int64]
_ROUNDS = 8
_BLOCK, _LEAST = 1 << 14, 1 << 8
_MIN_BITS = 8
_MASK = (1 << 64) - 1


def mix(value: int) -> int:
    """64 well-mixed bits of an integer: the finaliser of splitmix64 (Steele et al. 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def derive(seed: int, *what: int) -> int:
    """A 64-bit seed for one purpose, from the run's seed and the numbers that name the purpose."""
    for part in what:
        seed = mix(seed ^ mix(part))
    return seed


def keys(seed: int, start: int, stop: int) -> Indices:
    """A random int64 for each stream position in [start, stop): what augmentation draws from. Any layout gets the same."""
    return _hash(np.arange(start, stop, dtype=np.uint64) + np.uint64(1), np.uint64(seed)).view(np.int64)


def permute(n: int, key: int, positions: Indices) -> Indices:
    """The images of `positions` (each in range(n)) under the bijection of range(n) that `key` names. Shape kept."""
    low_bits = max((n - 1).bit_length(), _MIN_BITS) // 2
    high_bits = max((n - 1).bit_length(), _MIN_BITS) - low_bits
    keys = [np.uint64(derive(key, r)) for r in range(_ROUNDS)]
    once: Callable[[NDArray[np.uint64]], NDArray[np.uint64]] = partial(_feistel, low_bits, high_bits, keys)
    domain = 1 << (low_bits + high_bits)
    if 2 * positions.size >= domain:  # cheaper to know all of it: then a walk is looked up
        once = once(np.arange(domain, dtype=np.uint64)).take
    out = once(positions.astype(np.uint64))
    outside = np.flatnonzero(out >= n)
    while outside.size:
        out[outside] = once(out[outside])
        outside = outside[out[outside] >= n]
    return out.astype(np.int64)


def _feistel(low_bits: int, high_bits: int, keys: list[np.uint64], x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    low_mask, high_mask, shift = (np.uint64(v) for v in ((1 << low_bits) - 1, (1 << high_bits) - 1, low_bits))
    low, high = x & low_mask, x >> shift
    for r in range(0, _ROUNDS, 2):
        high ^= _hash(low, keys[r]) & high_mask
        low ^= _hash(high, keys[r + 1]) & low_mask
    return (high << shift) | low


def _hash(x: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    x = x ^ key
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(29)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(32)
    return x


class Order:
    """The shuffled stream over a data set of `n` samples. `take` keeps one block, so reading forward costs O(1) a sample.

    A block that was read through is followed by one of twice the length; a leap past it, as one rank of thousands makes at each
    step, by a short one, of which little is made in vain.
    """

    def __init__(self, n: int, seed: int) -> None:
        self.n = n
        self.seed = seed
        self._block: tuple[int, int, Indices] = (0, 0, np.empty(0, np.int64))
        self._length = _LEAST

    def take(self, start: int, stop: int) -> Indices:
        """Data set indices of stream positions [start, stop), across epochs. int64 [stop - start]."""
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

    def _make(self, start: int) -> tuple[int, int, Indices]:
        epoch, within = divmod(start, self.n)
        stop = min(within + self._length, self.n)
        indices = permute(self.n, derive(self.seed, epoch), np.arange(within, stop, dtype=np.int64))
        return start, start + stop - within, indices


class Chunk(Struct, frozen=True):
    """One forward pass of one rank: stream positions [start, start + count). `ghost`: run it with weight zero.

    A ghost stands where a short last batch leaves a rank without samples while others still have some.
    """

    start: int
    count: int
    ghost: bool = False


class Deal(Struct, frozen=True):
    """The chunks of one optimizer step for one process: `samples` positions from `start` over all ranks."""

    start: int
    samples: int
    chunks: tuple[Chunk, ...]


def deal(start: int, samples: int, micro: int, world: int, process: int, processes: int) -> Deal:
    """Cut one step's positions into chunks and give `process` those of the ranks it plays, in order of passes."""
    total = -(-samples // micro)
    passes = -(-total // world)
    chunks = []
    for number in range(passes):
        for rank in range(process, world, processes):
            c = number * world + rank
            if c < total:
                chunks.append(Chunk(start + c * micro, min(micro, samples - c * micro)))
            else:
                chunks.append(Chunk(start, min(micro, samples), ghost=True))
    return Deal(start, samples, tuple(chunks))


def deals(start: int, stop: int, batch: int, micro: int, world: int, process: int, processes: int) -> Iterator[Deal]:
    """The steps of a process from stream position `start` to `stop`: full batches, then the short rest."""
    while start < stop:
        samples = min(batch, stop - start)
        yield deal(start, samples, micro, world, process, processes)
        start += samples
