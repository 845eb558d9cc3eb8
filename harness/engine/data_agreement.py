"""The data of a run: the same on every rank, and no validation row among the training rows, as far as some rows tell."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xxhash
from torch.utils.data import Subset

from harness.config.errors import UserError
from harness.data.columns import Columns
from harness.data.feed import Data
from harness.distributed.process_group import gather, peers
from harness.plan.plan import Plan
from harness.recipes.base import Recipe, Split
from harness.recipes.fingerprint import FETCHED, ROWS, column_digests, read, row_digest, spaced

FEW, MANY = 4, 4096
"""Rows of validation that are compared with training rows: of data that are fetched one by one, and of columns."""


def check_size(plan: Plan, found: int) -> None:
    """Raises UserError if the number of training samples is not that of the run file, or is zero."""
    if plan.dataset_samples is not None and plan.dataset_samples != found:
        at = f"is {plan.dataset_samples}, but the recipe's data has {found} samples"
        raise UserError("recipe.samples", at, f"write {found} or leave it out")
    if found == 0:
        raise UserError("recipe.use", "the recipe's data is empty", "give it samples")


@dataclass(frozen=True)
class Seen:
    """A rank's fingerprint of a split: its length, which rows of a larger data set it takes (a hash), hashes of some rows."""

    length: int
    indices: str
    rows: list[str]


def check_data(recipe: Recipe, train: Data, valid: Data | None, seed: int) -> list[str]:
    """The notes about the data, on rank 0. All ranks call it. Raises UserError if their data differ."""
    notes = [train.summary()] if isinstance(train, Columns) and train.summary() else []
    rank, ranks = peers()
    if ranks > 1:
        notes += _compare(recipe, "train", train, FETCHED, seed)
        notes += [] if valid is None else _compare(recipe, "valid", valid, FEW, seed)
    if rank or valid is None:
        return [] if rank else notes
    common = shared_rows(recipe, train, valid, seed)
    return [*notes, common] if common else notes


def _compare(recipe: Recipe, split: Split, data: Data, most: int, seed: int) -> list[str]:
    """The notes about one split, compared over all ranks. Raises UserError."""
    mine = _see(recipe, split, data, most, seed)
    found = gather(mine)
    other = next((rank for rank, seen in enumerate(found) if seen != found[0]), None)
    if other is None:
        return []
    there = found[other]
    alike = (there.length, there.indices) == (found[0].length, found[0].indices) and not isinstance(data, Columns)
    if alike and not all(gather(mine == _see(recipe, split, data, most, seed))):
        at = f"the rows of data({split!r}) draw from a random generator of their own, which run.seed does not reach"
        return [f"{at}: no run can be repeated. Draw from torch, numpy.random or random, which are seeded for each sample"]
    how = f"{there.length:,} samples there, {found[0].length:,} here" if there.length != found[0].length else "other rows"
    at = f"data({split!r}) gave rank {other} a different data set than rank 0 ({how})"
    raise UserError("recipe.use", at, "draw from torch, numpy.random or random, which are seeded for all ranks alike")


def _see(recipe: Recipe, split: Split, data: Data, most: int, seed: int) -> Seen:
    own = recipe.fingerprint() if split == "train" else None
    numbers = spaced(len(data), ROWS if _cheap(data) else most)
    if own is not None:
        rows = [own]
    elif isinstance(data, Columns):
        rows = [row_digest(data.take(numbers))]
    else:
        rows = [row_digest(row) for row in read(recipe, data, numbers.tolist(), seed)]
    _, indices = _root(data)
    return Seen(len(data), "" if indices is None else xxhash.xxh3_128_hexdigest(indices.tobytes()), rows)


def shared_rows(recipe: Recipe, train: Data, valid: Data, seed: int) -> str | None:
    """How many validation rows are training rows, as text; None if none is seen."""
    advice = "give each row to one of them (random numbers in data() are seeded alike for both)"
    (base, mine), (other, held_out) = _root(train), _root(valid)
    if mine is not None and held_out is not None and type(base) is type(other) and len(base) == len(other):
        common = np.intersect1d(mine, held_out)
        first = common[:1].tolist()
        same = _digests(recipe, base, first, seed) == _digests(recipe, other, first, seed)
        return f"{len(common):,} of {len(held_out):,} validation rows are training rows: {advice}" if first and same else None
    if isinstance(train, Columns) != isinstance(valid, Columns):
        return None
    looked = MANY if _cheap(train) and _cheap(valid) else FEW
    rows = _digests(recipe, valid, spaced(len(valid), looked).tolist(), seed)
    known = set(_digests(recipe, train, spaced(len(train), looked).tolist(), seed))
    hits = sum(row in known for row in rows)
    return f"at least {hits:,} of {len(rows):,} validation rows looked at are training rows: {advice}" if hits else None


def _cheap(data: Data) -> bool:
    return isinstance(data, Columns) and data.cheap


def _digests(recipe: Recipe, data: Data, numbers: Sequence[int], seed: int) -> Sequence[str | bytes]:
    if isinstance(data, Columns):
        return column_digests(data.take(torch.tensor(numbers, dtype=torch.int64)))
    return [row_digest(row) for row in read(recipe, data, numbers, seed)]


def _root(data: Any) -> tuple[Any, Any]:
    """(the data set under torch's Subsets, the indices of its rows in them: int64 [n], or None without a Subset)."""
    indices = None
    while isinstance(data, Subset):
        here = np.asarray(data.indices, dtype=np.int64)
        indices, data = here if indices is None else here[indices], data.dataset
    return data, indices
