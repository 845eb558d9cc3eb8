"""Text files -> parts of about equal size, cut at ends of lines: the same parts whatever number of processes works on them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from harness.config.errors import UserError

PARTS, LEAST, MOST = 64, 1 << 20, 1 << 29
"""Into how many parts a text is cut, as long as each has between LEAST and MOST bytes."""
BLOCK = 1 << 20
"""Bytes of a text file that are cut into tokens at once; it ends with a line."""
LINES = ".jsonl"
"""Files that end so hold a document in each line; any other file is one document."""


@dataclass(frozen=True)
class Span:
    """The lines of a file that begin in bytes [start, stop)."""

    path: Path
    start: int
    stop: int


@dataclass(frozen=True)
class Piece:
    """Some text of a document, whose end it may be. `replaced`: it had bytes that are not UTF-8."""

    text: str
    ends: bool
    replaced: bool


def text_files(given: Sequence[Path], suffixes: Sequence[str]) -> list[Path]:
    """The files that files and folders name, in order; of a folder those with one of `suffixes`. Raises UserError."""
    found: list[Path] = []
    for path in given:
        if path.is_file():
            found.append(path)
            continue
        here = sorted(p for p in path.rglob("*") if p.name.endswith(tuple(suffixes)) and p.is_file())
        if not here:
            raise UserError("FILES", f"{path} holds no file that ends in {' or '.join(suffixes)}", "give files, or --suffix")
        found += here
    return found


def text_parts(files: Sequence[Path]) -> list[tuple[Span, ...]]:
    """All bytes of all files, in order."""
    sizes = [path.stat().st_size for path in files]
    most = min(max(-(-sum(sizes) // PARTS), LEAST), MOST)
    parts: list[list[Span]] = [[]]
    room = most
    for path, size in zip(files, sizes, strict=True):
        start = 0
        while True:
            stop = min(start + room, size)
            parts[-1].append(Span(path, start, stop))
            room -= stop - start
            if not room:
                parts.append([])
                room = most
            if stop == size:
                break
            start = stop
    return [tuple(part) for part in parts if part]


def pieces(span: Span, field: str) -> Iterator[Piece]:
    """The text of a span, in order. Raises UserError if a line of a .jsonl has no text in `field`."""
    with span.path.open("rb") as file:
        if span.start:
            file.seek(span.start - 1)
            file.readline()
        if span.path.suffix == LINES:
            yield from _documents(file, span, field)
            return
        size = span.path.stat().st_size
        if not size:
            yield Piece("", ends=True, replaced=False)
        while file.tell() < span.stop:
            text = b"".join(_block(file, span.stop))
            yield _piece(text, ends=file.tell() == size)


def _documents(file: BinaryIO, span: Span, field: str) -> Iterator[Piece]:
    """The document of each line that is not blank."""
    while (start := file.tell()) < span.stop:
        line = file.readline()
        if not line.strip():
            continue
        try:
            tree = json.loads(line)
        except ValueError as e:
            raise UserError("FILES", f"{span.path}, byte {start:,}: the line is not JSON ({e})", "fix that line") from e
        text = tree.get(field) if isinstance(tree, dict) else None
        if not isinstance(text, str):
            at = f"{span.path}, byte {start:,}: the line has no text in {field!r}"
            raise UserError("FILES", at, "fix it, or say where the text is: --field NAME")
        yield Piece(text, ends=True, replaced=False)


def _block(file: BinaryIO, stop: int) -> Iterator[bytes]:
    """Lines that begin before `stop`, about BLOCK bytes of them."""
    size = 0
    while size < BLOCK and file.tell() < stop:
        line = file.readline()
        size += len(line)
        yield line


def _piece(text: bytes, *, ends: bool) -> Piece:
    try:
        return Piece(text.decode(), ends, replaced=False)
    except UnicodeDecodeError:
        return Piece(text.decode(errors="replace"), ends, replaced=True)
