"""Shuffles of range(n) by a key: bijections of which any image, and any place of an image, is found in O(1) time and memory.

`FullShuffle` mixes all samples. `BlockShuffle` has two levels, so that reads stay local in data that is larger than memory: blocks
of neighbouring samples are shuffled, and then the samples of each `window` of blocks among themselves.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import TypeVar, final

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
_Bits = NDArray[np.uint64]
_ROUNDS = 8
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
    return _walked(n, key, positions, _feistel)


def unpermute(n: int, key: int, images: Indices) -> Indices:
    """The positions whose images under `permute` are `images`. Shape kept."""
    return _walked(n, key, images, _unfeistel)


class Shuffle(ABC):
    """A bijection of range(n) for each key."""

    n: int

    @abstractmethod
    def images(self, key: int, positions: Indices) -> Indices:
        """The samples at `positions`, each in range(n)."""

    @abstractmethod
    def positions(self, key: int, images: Indices) -> Indices:
        """Where the samples `images` are: the inverse of `images`."""


@final
class FullShuffle(Shuffle):
    """Every order of all samples is as likely as any other, as far as a keyed hash goes."""

    def __init__(self, n: int) -> None:
        self.n = n

    def images(self, key: int, positions: Indices) -> Indices:
        """See Shuffle.images."""
        return permute(self.n, key, positions)

    def positions(self, key: int, images: Indices) -> Indices:
        """See Shuffle.positions."""
        return unpermute(self.n, key, images)


@final
class BlockShuffle(Shuffle):
    """Blocks of `block` samples in a shuffled order; `window` of them at a time, whose samples are shuffled together.

    The last block may be short: it is filled up with numbers from n on, and whoever meets one walks on to the image of that number,
    as in any cycle walk. So fewer than `block` samples of an epoch lie elsewhere than their block does.
    """

    def __init__(self, n: int, block: int, window: int) -> None:
        self.n, self._block, self._window = n, block, window
        self._blocks = -(-n // block)

    def images(self, key: int, positions: Indices) -> Indices:
        """See Shuffle.images."""
        return _walk(self.n, positions, partial(self._image, key))

    def positions(self, key: int, images: Indices) -> Indices:
        """See Shuffle.positions."""
        return _walk(self.n, images, partial(self._position, key))

    def _image(self, key: int, positions: Indices) -> Indices:
        windows, inside = np.divmod(positions, self._window * self._block)
        for number in np.unique(windows).tolist():
            here = windows == number
            inside[here] = permute(self._size(number), derive(key, 1, number), inside[here])
        slots, rest = np.divmod(inside, self._block)
        return permute(self._blocks, derive(key, 0), windows * self._window + slots) * self._block + rest

    def _position(self, key: int, images: Indices) -> Indices:
        blocks, rest = np.divmod(images, self._block)
        windows, slots = np.divmod(unpermute(self._blocks, derive(key, 0), blocks), self._window)
        inside: Indices = slots * self._block + rest
        for number in np.unique(windows).tolist():
            here = windows == number
            inside[here] = unpermute(self._size(number), derive(key, 1, number), inside[here])
        inside += windows * (self._window * self._block)
        return inside

    def _size(self, window: int) -> int:
        """Samples of a window, those included with which its last block may be filled up."""
        return min(self._window, self._blocks - window * self._window) * self._block


_Numbers = TypeVar("_Numbers", Indices, _Bits)


def _walk(n: int, start: _Numbers, once: Callable[[_Numbers], _Numbers]) -> _Numbers:
    """Cycle walking (Black & Rogaway 2002): a bijection of a larger range as one of range(n), by continuing until inside it."""
    out = once(start)
    outside = np.flatnonzero(out >= n)
    while outside.size:
        out[outside] = once(out[outside])
        outside = outside[out[outside] >= n]
    return out


def _walked(n: int, key: int, start: Indices, network: Callable[[int, int, list[np.uint64], _Bits], _Bits]) -> Indices:
    """A Feistel network, or its inverse, as a bijection of range(n)."""
    low_bits = max((n - 1).bit_length(), _MIN_BITS) // 2
    high_bits = max((n - 1).bit_length(), _MIN_BITS) - low_bits
    round_keys = [np.uint64(derive(key, r)) for r in range(_ROUNDS)]
    once: Callable[[_Bits], _Bits] = partial(network, low_bits, high_bits, round_keys)
    domain = 1 << (low_bits + high_bits)
    if 2 * start.size >= domain:  # cheaper to know all of it: then a walk is looked up
        once = once(np.arange(domain, dtype=np.uint64)).take
    return _walk(n, start.astype(np.uint64), once).astype(np.int64)


def _feistel(low_bits: int, high_bits: int, round_keys: list[np.uint64], x: _Bits) -> _Bits:
    low_mask, high_mask, shift = (np.uint64(v) for v in ((1 << low_bits) - 1, (1 << high_bits) - 1, low_bits))
    low, high = x & low_mask, x >> shift
    for r in range(0, _ROUNDS, 2):
        high ^= _hash(low, round_keys[r]) & high_mask
        low ^= _hash(high, round_keys[r + 1]) & low_mask
    return (high << shift) | low


def _unfeistel(low_bits: int, high_bits: int, round_keys: list[np.uint64], x: _Bits) -> _Bits:
    """The rounds of `_feistel` backwards."""
    low_mask, high_mask, shift = (np.uint64(v) for v in ((1 << low_bits) - 1, (1 << high_bits) - 1, low_bits))
    low, high = x & low_mask, x >> shift
    for r in reversed(range(0, _ROUNDS, 2)):
        low ^= _hash(high, round_keys[r + 1]) & low_mask
        high ^= _hash(low, round_keys[r]) & high_mask
    return (high << shift) | low


def _hash(x: _Bits, key: np.uint64) -> _Bits:
    x = x ^ key
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(29)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(32)
    return x
