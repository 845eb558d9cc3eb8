"""Documents of any length packed into rows, so that little of a row is padding; the rows say where their documents begin.

Which documents share a row follows from their lengths alone, so it is the same on any number of processes, and in every epoch.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.data.columns import Columns
from harness.data.shuffles import Indices

UNCOUNTED = -100
"""A target that is not learnt: cross_entropy's ignore_index."""
NAMED = 8
"""Lines of a row's documents that are named."""


@dataclass(frozen=True)
class Documents:
    """Texts as ids, one after another: `ids` int32 [sum of lengths], `learn` bool of the same shape, `lengths` int64 [documents].

    `lines`: int64 [documents], where each was in its file. `what`: what they are called.
    """

    ids: NDArray[np.int32]
    learn: NDArray[np.bool_]
    lengths: Indices
    lines: Indices
    what: str = "documents"

    @classmethod
    def of(cls, rows: Sequence[tuple[int, Sequence[int], Sequence[bool] | None]], what: str = "documents") -> "Documents":
        """Of (line, ids, which of them are learnt; None: all)."""
        flags = [np.ones(len(ids), bool) if learn is None else np.asarray(learn, bool) for _, ids, learn in rows]
        lengths = np.array([len(ids) for _, ids, _ in rows], np.int64)
        lines = np.array([line for line, _, _ in rows], np.int64)
        ids = [np.asarray(ids, np.int32) for _, ids, _ in rows]
        return cls(_joined(ids, np.int32), _joined(flags, np.bool_), lengths, lines, what)


def best_fit(lengths: Indices, room: int) -> Indices:
    """The row of each document (int64 [documents]), rows numbered by their first one; each length is 1 to `room`.

    Best-fit decreasing: the longest first, each into the row that it leaves least room in. Source: Ding et al. 2024, 2404.10830.
    """
    rows = np.empty(len(lengths), np.int64)
    open_rows: list[list[int]] = [[] for _ in range(room + 1)]  # by the room that is left in them
    left: list[int] = []  # the rooms of which there are rows, in order
    made = 0
    for document in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[document])
        at = bisect_left(left, length)
        if at < len(left):
            space = left[at]
            row = open_rows[space].pop()
            if not open_rows[space]:
                del left[at]
        else:
            space, row, made = room, made, made + 1
        rows[document] = row
        if space > length:
            if not open_rows[space - length]:
                insort(left, space - length)
            open_rows[space - length].append(row)
    _, first = np.unique(rows, return_index=True)
    number = np.empty(made, np.int64)
    number[np.argsort(first)] = np.arange(made)
    return number[rows]


@final
class PackedRows(Columns):
    """Rows of `context` places for documents of at most `context` + 1 tokens: a document takes a place for each token it predicts.

    Batches have int32 [n, context] each: tokens; target, the token that follows in the same document, UNCOUNTED where it is not
    learnt; position, which begins at 0 with each document, and once more with the padding at the end. And length int64 [n], the
    places that are no padding. `pack` false: each document has a row of its own. `about`: a line for the summary.
    """

    def __init__(self, documents: Documents, context: int, *, pack: bool = True, about: str = "") -> None:
        self.context, self._what, self._about = context, documents.what, about
        sizes = documents.lengths - 1
        rows = best_fit(sizes, context) if pack else np.arange(len(sizes))
        order = np.argsort(rows, kind="stable")
        self._lines = documents.lines[order]
        ends = np.cumsum(sizes[order])
        starts = ends - sizes[order]
        first = (np.cumsum(documents.lengths) - documents.lengths)[order]
        self._first_document = np.searchsorted(rows[order], np.arange(rows.max(initial=-1) + 2))
        self._first = np.concatenate([np.zeros(1, np.int64), ends])[self._first_document]
        place = np.arange(ends[-1] if len(ends) else 0)
        source = np.repeat(first - starts, sizes[order]) + place
        self._tokens = documents.ids[source]
        self._position = (place - np.repeat(starts, sizes[order])).astype(np.int32)
        self._target = np.where(documents.learn[source + 1], documents.ids[source + 1], np.int32(UNCOUNTED))

    def __len__(self) -> int:
        return len(self._first) - 1

    @property
    def row_bytes(self) -> int:
        """See Columns.row_bytes."""
        return 12 * self.context + 8

    def take(self, indices: Tensor) -> dict[str, Tensor]:
        """See Columns.take."""
        rows = indices.numpy()
        length = self._first[rows + 1] - self._first[rows]
        place = np.arange(self.context)
        real = place < length[:, None]
        at = np.where(real, self._first[rows][:, None] + place, 0)
        columns = {
            "tokens": np.where(real, self._tokens[at], 0),
            "target": np.where(real, self._target[at], UNCOUNTED),
            "position": np.where(real, self._position[at], place - length[:, None]),
        }
        found = {name: torch.from_numpy(column.astype(np.int32, copy=False)) for name, column in columns.items()}
        return found | {"length": torch.from_numpy(length)}

    def source(self, index: int) -> str:
        """See Columns.source: the lines of the row's documents."""
        lines = self._lines[self._first_document[index] : self._first_document[index + 1]].tolist()
        more = f" and {len(lines) - NAMED} more" if len(lines) > NAMED else ""
        return f"line{'s' * (len(lines) > 1)} {', '.join(map(str, lines[:NAMED]))}{more}"

    def summary(self) -> str:
        """See Columns.summary: what packing has won."""
        used, documents = len(self._tokens), len(self._lines)
        padding, alone = (100 * (1 - used / (rows * self.context)) for rows in (len(self), documents))
        packed = f"{documents:,} {self._what} are packed into {len(self):,} rows of {self.context:,} tokens"
        won = f"{packed}: {padding:.2g} % padding, {alone:.2g} % if each had its own row" if documents > len(self) else ""
        return "; ".join(filter(None, (won, self._about)))


def _joined(parts: Sequence[NDArray[Any]], dtype: type[Any]) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *parts])
