"""Token files as a data set: samples are rows of context + 1 tokens, found by number and read where a batch needs them.

Nothing of a file is copied into the process but the rows of a batch, and starting costs the same for any size.
"""

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from harness.config.errors import UserError
from harness.data.columns import Columns
from harness.data.document_bounds import begins_behind, positions
from harness.data.token_formats import SETTING, SUFFIXES, RawType, TokenFile, TokenIndex, open_tokens, read_index

BLOCKS, BLOCK = 64, 1024
"""How many evenly spaced blocks of tokens are checked before training; the fingerprint is a hash of them."""


@final
class TokenFiles(Columns):
    """Rows of `context` + 1 tokens, one at each `stride`-th token of each file; no row goes over the end of a file.

    `files`: a folder, a file, a pattern (`corpus/*.bin`) or several; `dtype`: the type of ids in a raw .bin. Batches have tokens
    int32 [n, context + 1] and length int64 [n], the number of true tokens: the last row of a file is filled up with zeros.
    `vocabulary`: ids from there on are refused. None: that of tokens.json; without one, any id that fits 31 bits is taken.
    `documents`: "masked" adds position int32 [n, context + 1], each token's place in its document, which begins at 0 with each row
    too. Documents end with the id `eos` (None: that of tokens.json), else where Megatron-LM's index says.
    Raises UserError, for `setting`, where no file is named, or one is cut off, of another kind, or holds such an id.
    """

    def __init__(  # noqa: PLR0913  settings, each given by its name
        self,
        files: str | Sequence[str],
        context: int,
        *,
        stride: int | None = None,
        dtype: RawType = "uint16",
        vocabulary: int | None = None,
        documents: Literal["joined", "masked"] = "joined",
        eos: int | None = None,
        setting: str = SETTING,
    ) -> None:
        """Raises UserError, naming `setting`."""
        self.context, self.stride, self._setting = context, stride or context, setting
        if self.stride > context:
            at = f"is {self.stride}, more than the context of {context}: the tokens between two rows would never be predicted"
            raise UserError("recipe.stride", at, f"give at most {context}")
        self.paths = token_paths(files, setting)
        try:
            indices = indices_of(self.paths)
            self._files = [open_tokens(path, dtype, indices[path.parent]) for path in self.paths]
        except UserError as e:
            raise UserError(setting, e.problem, e.remedy) from e
        known = list(filter(None, indices.values()))
        self._digests = [index.digest for index in known]
        self._indexed = all(not file.guessed for file in self._files) and len(known) == len(indices)
        self.vocabulary = vocabulary or max([index.vocabulary for index in known], default=None)
        self._masked = documents == "masked"
        self._eos = self._ends(indices, eos)
        self._first = np.cumsum([0, *(self._rows(len(file.ids)) for file in self._files)])
        if not len(self):
            raise UserError(setting, f"{self.paths[0]} holds 1 token, and a sample needs two", "give a longer one")
        self._blocks = list(self._sampled())

    def __len__(self) -> int:
        return int(self._first[-1])

    @property
    def row_bytes(self) -> int:
        """See Columns.row_bytes."""
        return (8 if self._masked else 4) * (self.context + 1) + 8

    def take(self, indices: Tensor) -> dict[str, Tensor]:
        """See Columns.take. Raises UserError at an id that is past the vocabulary."""
        rows, width = indices.numpy(), self.context + 1
        tokens, length = np.zeros((len(rows), width), np.int32), np.full(len(rows), width, np.int64)
        begins = np.zeros((len(rows), width) if self._masked else (0, 0), bool)
        numbers = np.searchsorted(self._first, rows, side="right") - 1
        starts = (rows - self._first[numbers]) * self.stride
        for number in np.unique(numbers).tolist():
            file, here = self._files[number], numbers == number
            whole = np.flatnonzero(here & (starts <= len(file.ids) - width))
            if whole.size:
                windows = np.lib.stride_tricks.sliding_window_view(file.ids, width)
                tokens[whole] = self._checked(file, windows[starts[whole]])
            for place in np.flatnonzero(here & (starts > len(file.ids) - width)):  # only the last row of a file may be short
                rest = self._checked(file, file.ids[starts[place] :])
                tokens[place, : len(rest)], length[place] = rest, len(rest)
            if self._masked:
                eos = self._eos[number]
                at = np.flatnonzero(here)
                begins[at] = file.bounds.begins(starts[at], width) if eos is None else begins_behind(tokens[at], eos)
        found = {"tokens": torch.from_numpy(tokens), "length": torch.from_numpy(length)}
        return found | {"position": torch.from_numpy(positions(begins))} if self._masked else found

    def fingerprint(self) -> str:
        """See Columns.fingerprint: of tokens.json where all files have one, else of sizes and of BLOCKS blocks."""
        masked = f" masked {self._eos}" if self._masked else ""
        state = xxhash.xxh3_128(f"{self.context} {self.stride} {[len(file.ids) for file in self._files]}{masked}".encode())
        for part in self._digests if self._indexed else self._blocks:
            state.update(part.encode() if isinstance(part, str) else np.ascontiguousarray(part, np.int64).tobytes())
        return f"{len(self)}:{state.hexdigest()}"

    def source(self, index: int) -> str:
        """See Columns.source."""
        number = int(np.searchsorted(self._first, index, side="right")) - 1
        start = (index - int(self._first[number])) * self.stride
        stop = min(start + self.context + 1, len(self._files[number].ids))
        return f"{self.paths[number]}, tokens {start:,} to {stop:,}"

    def _ends(self, indices: Mapping[Path, TokenIndex | None], eos: int | None) -> list[int | None]:
        """See `_end`, of each file; nothing where documents are joined."""
        return [self._end(file, indices[file.path.parent], eos) for file in self._files] if self._masked else []

    def _end(self, file: TokenFile, index: TokenIndex | None, eos: int | None) -> int | None:
        """The id that ends a document of a file; None where its index says where they begin. Raises UserError if nothing does."""
        known = eos if eos is not None or index is None else index.eos
        if known is None and file.bounds is None:
            at = f"is masked, and nothing says where the documents of {file.path} end"
            raise UserError("recipe.documents", at, "give recipe.eos, the id of the token behind each document")
        if known is not None and not 0 <= known < (self.vocabulary or 1 << 31):
            at = f"is {known}, and the vocabulary has {self.vocabulary or 1 << 31:,}: no document would end"
            raise UserError("recipe.eos", at, "give the id of the token behind each document")
        return known

    def _rows(self, tokens: int) -> int:
        """Rows of a file, so that each token but its first is predicted."""
        return 1 + max(-(-(tokens - 1 - self.context) // self.stride), 0) if tokens > 1 else 0

    def _sampled(self) -> Any:
        """Some blocks of all files, checked. Raises UserError."""
        ends = np.cumsum([len(file.ids) for file in self._files])
        guessed: list[NDArray[Any]] = []
        for position in np.unique(np.linspace(0, ends[-1] - 1, BLOCKS).astype(np.int64)).tolist():
            number = int(np.searchsorted(ends, position, side="right"))
            file = self._files[number]
            start = (position - int(ends[number]) + len(file.ids)) // 2 * 2
            block = file.ids[start : start + BLOCK]
            guessed += [block] if file.guessed and file.ids.dtype.itemsize == 2 else []
            yield self._checked(file, block)
        if guessed and _halves(guessed):
            at = f"{self.paths[0]} is read as uint16, and every second id is 0: it looks like uint32"
            raise UserError(self._setting, at, "give recipe.dtype: uint32")

    def _checked(self, file: TokenFile, ids: NDArray[Any]) -> NDArray[Any]:
        """`ids` of a file, all of them in the vocabulary. Raises UserError."""
        low, high = (int(ids.min()), int(ids.max())) if ids.size else (0, 0)
        if low >= 0 and high < (self.vocabulary or 1 << 31):
            return ids
        odd = low if low < 0 else high
        limit = f"the vocabulary has {self.vocabulary:,}" if self.vocabulary else "no vocabulary has so many"
        raw = f" and recipe.dtype (now {file.ids.dtype})" if file.guessed else ""
        remedy = f"give the tokens that the model's tokenizer makes; see recipe.tokenizer{raw}"
        raise UserError(self._setting, f"{file.path} holds the id {odd:,}, and {limit}", remedy)


def indices_of(paths: Sequence[Path]) -> dict[Path, TokenIndex | None]:
    """The tokens.json of each folder that files lie in. Raises UserError."""
    return {folder: read_index(folder) for folder in dict.fromkeys(path.parent for path in paths)}


def widest(paths: Sequence[Path]) -> TokenIndex | None:
    """The tokens.json with the largest vocabulary, None if there is none. Raises UserError."""
    return max([i for i in indices_of(paths).values() if i is not None], key=lambda index: index.vocabulary, default=None)


def token_paths(files: str | Sequence[str], setting: str) -> list[Path]:
    """The files that a folder, a file, a pattern or several of them name, in order. Raises UserError."""
    found: list[Path] = []
    for text in [files] if isinstance(files, str) else files:
        path = Path(text)
        if path.is_dir():
            here = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES)
        else:
            here = [path] if path.is_file() else sorted(map(Path, glob.glob(text, recursive=True)))  # noqa: PTH207  absolute ones too
        if not here:
            raise UserError(setting, f"{text!r} names no file", "give a folder, a file or a pattern of .bin or .npy files")
        found += here
    odd = next((path for path in found if path.suffix not in SUFFIXES), None)
    if odd is not None:
        remedy = "give .bin or .npy files; `widebatch tokenize` makes them of text"
        raise UserError(setting, f"{odd} does not end in {' or '.join(SUFFIXES)}", remedy)
    twice = next((path for path in found if found.count(path) > 1), None) if len(set(found)) < len(found) else None
    if twice is not None:
        raise UserError(setting, f"{twice} is named twice", "name each file once")
    return found


def _halves(blocks: Sequence[NDArray[Any]]) -> bool:
    """Whether 16-bit numbers are the halves of 32-bit ids: each second one is 0, and not all are."""
    odd: list[bool] = [bool(block[1::2].any()) for block in blocks]
    even: list[bool] = [bool(block[::2].any()) for block in blocks]
    return any(even) and not any(odd)
