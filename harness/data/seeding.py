"""Seeds for every generator that a recipe may draw from: torch's, numpy's and Python's own.

All follow from `run.seed`, a purpose, and the place in the sample stream, so that any layout of ranks, a resumed run and `verify`
draw the same. Generators that a recipe makes for itself are its own to seed.
"""

import random
from functools import cache

import numpy as np
import torch

from harness.data.sample_order import derive

MODEL, PASS, ORDER, KEYS, DATA, SAMPLE, COLLATE, EVALUATION = 1, 2, 3, 4, 5, 6, 7, 8
"""Purposes of seeds. KEYS are the random numbers that come with the samples of a recipe that augments. Fixed: earlier versions drew
with these numbers."""


def seed_host(seed: int) -> None:
    """Seed the generators of the CPU; `seed` has up to 64 bits."""
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)


def seed_all(seed: int) -> None:
    """Seed the generators of the CPU and of this process's GPU."""
    seed_host(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(seed)


def sample_seed(seed: int, position: int) -> int:
    """The seed for reading the sample at a stream position; `seed` is the run's."""
    return derive(seed, SAMPLE, position)


def collate_seed(seed: int, position: int) -> int:
    """The seed for `collate` of the batch that begins at a stream position."""
    return derive(seed, COLLATE, position)


PROBE = 0


def drawn_since_probe() -> bool:
    """Whether anything was drawn from, or seeded, on the host since `seed_host(PROBE)`. Draws itself."""
    return _next_draws() != _first_draws()


def _next_draws() -> tuple[int, float, float]:
    fresh = torch.empty((), dtype=torch.int64, device="cpu").random_()
    return int(fresh), np.random.random_sample(), random.random()  # noqa: S311


@cache
def _first_draws() -> tuple[int, float, float]:
    """The first numbers after `seed_host(PROBE)`."""
    seed_host(PROBE)
    return _next_draws()
