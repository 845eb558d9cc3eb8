"""Several named data sets as one: their samples one after another, to be mixed in training or told apart in validation."""

import re
from abc import ABC
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard, final

import numpy as np
import torch
from torch import Tensor

from harness.config.errors import UserError
from harness.data.columns import Columns, Sourced
from harness.data.feed import Data
from harness.data.mixed_order import shares
from harness.data.workers import Batched, MapStyle

NAME = re.compile(r"[a-z0-9_]+")
"""What a set may be called: its name is part of metrics' names."""


Stages = Sequence[tuple[int, Sequence[float]]]
"""(samples of the run, weights from there on), in order."""


class Joined(ABC):  # noqa: B024  what its two kinds have in common is all here
    """Named sets, numbered on from one to the next. `weights`: of each in training; none where they are not mixed.

    `then`: (samples of the run, weights from there on).
    """

    def __init__(self, sets: Mapping[str, Data], weights: Sequence[float] = (), then: Stages = ()) -> None:
        """Raises UserError for a name that no metric can have."""
        for name in sets:
            if not NAME.fullmatch(name):
                raise UserError("recipe.use", f"data() names a set {name!r}", "use small letters, digits and _ in its name")
        self.sets, self.weights, self.then = dict(sets), tuple(weights), tuple(then)
        self.first = np.cumsum([0, *(len(one) for one in sets.values())])

    def __len__(self) -> int:
        return int(self.first[-1])

    def spans(self) -> Iterator[tuple[str, int, int]]:
        """(name, first number, number past the last) of each set."""
        ends = self.first.tolist()
        yield from zip(self.sets, ends, ends[1:], strict=False)

    def source(self, index: int) -> str:
        """The set of a sample, and where it lies."""
        number = int(np.searchsorted(self.first, index, side="right")) - 1
        name, one = list(self.sets.items())[number]
        within = one.source(index - int(self.first[number])) if isinstance(one, Sourced) else ""
        return f"{name}: {within}" if within else f"{name} {index - int(self.first[number])}"


@final
class JoinedColumns(Joined, Columns):
    """Joined sets that are all columns, with the same names, types and shapes."""

    def __init__(self, sets: Mapping[str, Columns], weights: Sequence[float] = (), then: Stages = ()) -> None:
        """Raises UserError if columns differ."""
        super().__init__(sets, weights, then)
        self._sets = list(sets.values())
        kinds = {name: _kind(one) for name, one in sets.items()}
        odd = next((name for name, kind in kinds.items() if kind != next(iter(kinds.values()))), None)
        if odd is not None:
            at = f"the sets {next(iter(sets))} and {odd} differ in their columns ({next(iter(kinds.values()))}, {kinds[odd]})"
            raise UserError("recipe.use", at, "give all sets columns of the same names, types and shapes")

    @property
    def cheap(self) -> bool:
        """See Columns.cheap."""
        return all(one.cheap for one in self._sets)

    def summary(self) -> str:
        """See Columns.summary."""
        return "; ".join(
            f"{name}: {one.summary()}" for name, one in self.sets.items() if isinstance(one, Columns) and one.summary()
        )

    @property
    def row_bytes(self) -> int:
        """See Columns.row_bytes."""
        return max(one.row_bytes for one in self._sets)

    def take(self, indices: Tensor) -> dict[str, Tensor]:
        """See Columns.take."""
        rows = indices.numpy()
        numbers = np.searchsorted(self.first, rows, side="right") - 1
        places = [np.flatnonzero(numbers == number) for number in range(len(self._sets))]
        parts = [
            one.take(torch.from_numpy(rows[here] - self.first[number]))
            for number, (one, here) in enumerate(zip(self._sets, places, strict=True))
            if here.size
        ]
        if len(parts) == 1:
            return parts[0]
        back = torch.from_numpy(np.argsort(np.concatenate(places)))
        return {name: torch.cat([part[name] for part in parts]).index_select(0, back) for name in parts[0]}


@final
class JoinedItems(Joined):
    """Joined sets of which at least one is read sample by sample."""

    def __getitem__(self, index: int) -> Any:
        number = int(np.searchsorted(self.first, index, side="right")) - 1
        return list(self.sets.values())[number][index - int(self.first[number])]  # type: ignore[index]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        rows = np.array(indices, np.int64)
        numbers = np.searchsorted(self.first, rows, side="right") - 1
        out: list[Any] = [None] * len(indices)
        for number, one in enumerate(self.sets.values()):
            here = np.flatnonzero(numbers == number).tolist()
            within = (rows[here] - self.first[number]).tolist()
            found = one.__getitems__(within) if isinstance(one, Batched) else [one[i] for i in within]  # type: ignore[index]
            for place, sample in zip(here, found, strict=True):
                out[place] = sample
        return out


def joined(sets: Mapping[str, Data], weights: Sequence[float] = (), then: Stages = ()) -> JoinedColumns | JoinedItems:
    """The sets as one. Raises UserError if they do not go together."""
    columns = {name: one for name, one in sets.items() if isinstance(one, Columns)}
    if len(columns) == len(sets):
        return JoinedColumns(columns, weights, then)
    if columns:
        at = f"the set {next(iter(columns))} is read in columns, other sets sample by sample"
        raise UserError("recipe.use", at, "make all sets columns, or none")
    return JoinedItems(sets, weights, then)


def mixture(
    sources: Mapping[str, Data], weights: Mapping[str, float], then: Mapping[int, Mapping[str, float]] | None = None
) -> JoinedColumns | JoinedItems:
    """Training data of several sources: after any number of samples each source has had its share, to within one sample.

    `weights`: by source, above 0; only their ratios count. An epoch of the run is as many samples as all sources have together.
    `then`: other weights from a number of samples of the run on, as `{1_000_000: {"web": 0.5, "code": 0.5}}`. Each source
    continues where it was, and gets its share of the samples since then, to within one.
    Raises UserError where a source has no weight or a weight no source, where the columns of sources differ, or where one source is
    read in columns and another sample by sample.
    """
    stages = sorted((then or {}).items())
    if stages and stages[0][0] < 1:
        raise UserError("recipe.weights", f"change at {stages[0][0]:,} samples", "give the first weights as `weights`")
    return joined(sources, _in_order(sources, weights), [(at, _in_order(sources, part)) for at, part in stages])


def _in_order(sources: Mapping[str, Data], weights: Mapping[str, float]) -> list[float]:
    """The weights in the order of the sources. Raises UserError if they are of others, or make no order."""
    if not sources or set(sources) != set(weights):
        at = f"name {', '.join(weights) or 'nothing'}, and the sources are {', '.join(sources) or 'none'}"
        raise UserError("recipe.weights", at, "give each source one weight")
    given = [weights[name] for name in sources]
    shares(given)
    return given


def _kind(data: Columns) -> str:
    """Names, types and shapes of a row's columns."""
    row = data.take(torch.zeros(1, dtype=torch.int64))
    return ", ".join(f"{name} {str(column.dtype).removeprefix('torch.')} {list(column.shape[1:])}" for name, column in row.items())


def is_sets(data: object) -> TypeGuard[Mapping[str, Data]]:
    """Whether this is a dict of data sets by name, and not one of columns."""
    if not isinstance(data, Mapping) or not data:
        return False
    return all(isinstance(one, Columns | MapStyle) and not isinstance(one, Tensor | np.ndarray) for one in data.values())
