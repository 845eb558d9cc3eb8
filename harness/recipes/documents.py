"""Text files as documents of tokens: each line of a .jsonl is one, any other file too. Long ones are cut, and none is padded."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from harness.config.errors import UserError
from harness.data.packing import Documents
from harness.recipes.base import Split
from harness.recipes.text import VALID_EVERY, text_paths

LINES = ".jsonl"
FIELD = "text"
"""Where the text of a line is, if nothing else is said."""
AT_ONCE = 1000
"""Documents that are given to the tokenizer at once."""
Encode = Callable[[list[str]], list[list[int]]]


def read_documents(files: str | None, suffix: str, field: str, split: Split, most: int, context: int, encode: Encode) -> Documents:
    """The documents of a split, in pieces of at most `context` + 1 tokens, each token but a document's first predicted once.

    Of several files every twentieth is for validation; of a single one, every twentieth document, or piece of its only document.
    The first `most` bytes of the split's files are read. Raises UserError that names file and line.
    """
    paths = text_paths(files, suffix)
    chosen = [p for i, p in enumerate(paths) if (i % VALID_EVERY == 0) == (split == "valid")] if len(paths) > 1 else paths
    texts = list(_texts(chosen, field, most))
    if len(paths) == 1 and len(texts) > 1:
        texts = [text for number, text in enumerate(texts) if (number % VALID_EVERY == 0) == (split == "valid")]
    rows = [piece for line, ids in _encoded(texts, encode) for piece in _pieces(line, ids, context)]
    if len(paths) == 1 and len(texts) == 1:
        rows = [row for number, row in enumerate(rows) if (number % VALID_EVERY == 0) == (split == "valid")]
    if not rows:
        raise UserError("recipe.files", f"{files!r} holds no text for split {split}", "name a folder with more files")
    return Documents.of([(line, ids, None) for line, ids in rows])


def _texts(paths: Sequence[Path], field: str, most: int) -> Iterator[tuple[int, str]]:
    """(line, text) of each document, as far as `most` bytes go."""
    for path in paths:
        if path.suffix != LINES:
            text = path.read_bytes()[:most]
            most -= len(text)
            yield 1, text.decode(errors="replace")
            continue
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                most -= len(line)
                if most < 0:
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


def _encoded(texts: Sequence[tuple[int, str]], encode: Encode) -> Iterator[tuple[int, list[int]]]:
    for first in range(0, len(texts), AT_ONCE):
        part = texts[first : first + AT_ONCE]
        yield from zip([line for line, _ in part], encode([text for _, text in part]), strict=True)


def _pieces(line: int, ids: list[int], context: int) -> Iterator[tuple[int, list[int]]]:
    yield from ((line, ids[start : start + context + 1]) for start in range(0, len(ids) - 1, context))
