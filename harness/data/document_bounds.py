"""Where documents begin in files of tokens: behind each id that ends one, or as an index says, which is not read whole."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from harness.config.errors import UserError
from harness.data.shuffles import Indices


@final
@dataclass(frozen=True)
class Bounds:
    """Megatron-LM's two levels: document k begins with sequence `documents[k]`, whose first byte is `pointers[that]`; both mapped.

    `documents`: int64 [documents + 1], `pointers`: int64 [sequences], `itemsize`: bytes of a token.
    """

    path: Path
    documents: NDArray[np.int64]
    pointers: NDArray[np.int64]
    itemsize: int

    def begins(self, starts: Indices, width: int) -> NDArray[np.bool_]:
        """Which of the tokens [start, start + width) begin a document: bool [n, width]. Raises UserError at a damaged index."""
        out = np.zeros((len(starts), width), bool)
        first, past = self._from(starts), self._from(starts + width)
        rows = np.repeat(np.arange(len(starts)), past - first)
        numbers = np.arange(len(rows)) + np.repeat(first - (np.cumsum(past - first) - (past - first)), past - first)
        places = self._start(numbers) - starts[rows]
        if ((places < 0) | (places >= width)).any():
            raise self._damaged()
        out[rows, places] = True
        return out

    def _from(self, places: Indices) -> Indices:
        """The first document that begins at a place or behind it, by halving: int64 [n]."""
        low, high = np.zeros(len(places), np.int64), np.full(len(places), len(self.documents) - 1, np.int64)
        while (open_ := np.flatnonzero(low < high)).size:
            middle = (low[open_] + high[open_]) // 2
            before = self._start(middle) < places[open_]
            low[open_] = np.where(before, middle + 1, low[open_])
            high[open_] = np.where(before, high[open_], middle)
        return low

    def _start(self, numbers: Indices) -> Indices:
        sequences = self.documents[numbers]
        if ((sequences < 0) | (sequences >= len(self.pointers))).any():
            raise self._damaged()
        found: Indices = self.pointers[sequences] // self.itemsize
        return found

    def _damaged(self) -> UserError:
        return UserError(
            "recipe.documents", f"{self.path} has document bounds out of order: it is damaged", "write it again, or give recipe.eos"
        )


def begins_behind(ids: NDArray[Any], eos: int) -> NDArray[np.bool_]:
    """Which tokens of rows [n, width] stand behind one that ends a document: bool [n, width]."""
    out = np.zeros(ids.shape, bool)
    np.equal(ids[:, :-1], eos, out=out[:, 1:])
    return out


def positions(begins: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Each token's place in its document, or in the row where that begins earlier: int32 [n, width]."""
    places = np.arange(begins.shape[1], dtype=np.int32)
    return places - np.maximum.accumulate(np.where(begins, places, np.int32(0)), axis=1)
