"""Text as documents of tokens: each line of a .jsonl is one, each row of a table, any other file. Long ones are cut."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import orjson

from harness.config.errors import UserError
from harness.data.open_dataset import is_table, read_samples
from harness.data.packing import Documents
from harness.recipes.base import Split
from harness.recipes.text import VALID_EVERY, Budget, text_paths

LINES = ".jsonl"
FIELD = "text"
"""Where the text of a line is, if nothing else is said."""
AT_ONCE = 1000
"""Documents that are given to the tokenizer at once."""
Encode = Callable[[list[str]], list[list[int]]]
_Text = str | list[int]
_T = TypeVar("_T")


def read_documents(
    files: str | None, suffix: str, field: str, split: Split, budget: Budget, context: int, encode: Encode
) -> Documents:
    """The documents of a split, in pieces of at most `context` + 1 tokens, each token but a document's first predicted once.

    Of several files every twentieth is for validation; of a single one, every twentieth document, or piece of its only document.
    The split's files are read as far as `budget` goes. Raises UserError that names file and line.
    """
    table = files is not None and is_table(files)
    paths = [] if table else text_paths(files, suffix)
    chosen = _of(split, paths) if len(paths) > 1 else paths
    texts = list(_values(str(files), field, budget) if table else _texts(chosen, field, budget))
    if len(paths) < 2 and len(texts) > 1:
        texts = _of(split, texts)
    rows = [piece for line, ids in _encoded(texts, encode) for piece in _pieces(line, ids, context)]
    if len(paths) < 2 and len(texts) == 1:
        rows = _of(split, rows)
    if not rows:
        raise UserError("recipe.files", f"{files!r} holds no text for split {split}", "name a folder with more files")
    return Documents.of([(line, ids, None) for line, ids in rows])


def _of(split: Split, parts: Sequence[_T]) -> list[_T]:
    return [part for number, part in enumerate(parts) if (number % VALID_EVERY == 0) == (split == "valid")]


def _values(files: str, field: str, budget: Budget) -> Iterator[tuple[int, _Text]]:
    """(row, text or ids) of each row, as far as the budget goes. Raises UserError."""
    for number, sample in _rows(files, field):
        value = sample[field]
        whole = isinstance(value, str) or (isinstance(value, list) and all(isinstance(i, int) for i in value))
        if not whole:
            at = f"{files} row {number} has neither a text nor token ids in {field!r}"
            raise UserError("recipe.files", at, "fix it, or say where the text is: recipe.field")
        if not budget.spend(len(value.encode()) if isinstance(value, str) else 4 * len(value)):
            return
        yield number, value


def _rows(files: str, field: str) -> Iterator[tuple[int, Any]]:
    """The rows of a table. Raises UserError that names the setting of these recipes."""
    try:
        yield from read_samples(files, [field])
    except UserError as e:
        raise UserError("recipe.files", e.problem, e.remedy) from e


def _texts(paths: Sequence[Path], field: str, budget: Budget) -> Iterator[tuple[int, _Text]]:
    """(line, text) of each document, as far as the budget goes."""
    for path in paths:
        if path.suffix != LINES:
            yield 1, budget.read(path).decode(errors="replace")
            continue
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not budget.spend(len(line)):
                    return
                if line.strip():
                    yield number, _text(path, number, line, field)


def _text(path: Path, number: int, line: bytes, field: str) -> str:
    try:
        tree = orjson.loads(line)
    except ValueError as e:
        raise UserError("recipe.files", f"{path} line {number} is not JSON ({e})", "fix that line") from e
    text: Any = tree.get(field) if isinstance(tree, dict) else None
    if not isinstance(text, str):
        at = f"{path} line {number} has no text in {field!r}"
        raise UserError("recipe.files", at, "fix it, or say where the text is: recipe.field")
    return text


def _encoded(texts: Sequence[tuple[int, _Text]], encode: Encode) -> Iterator[tuple[int, list[int]]]:
    """(line, ids) of documents: those of texts; what is ids already stays."""
    for first in range(0, len(texts), AT_ONCE):
        part = texts[first : first + AT_ONCE]
        given = [text for _, text in part if isinstance(text, str)]
        found = iter(encode(given) if given else [])
        yield from ((line, next(found) if isinstance(text, str) else text) for line, text in part)


def _pieces(line: int, ids: list[int], context: int) -> Iterator[tuple[int, list[int]]]:
    yield from ((line, ids[start : start + context + 1]) for start in range(0, len(ids) - 1, context))
