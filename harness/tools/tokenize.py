"""Text files -> files of token ids, by several processes: the same bytes for any number of them, and after any interruption.

Text is cut into parts by its size alone. A part is written under another name and renamed when it is whole, then its counts; what
is there already is not made again. tokens.json comes last: a folder that has one is complete. One command at a time has the folder:
the first to end would remove what another is writing.
"""

import json
import os
import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import xxhash

from harness.config.errors import UserError
from harness.config.run_folder import LOCK
from harness.data.text_parts import Piece, Span, pieces, text_files, text_parts
from harness.data.token_formats import INDEX, ORIGIN
from harness.data.workers import end_with
from harness.recipes.byte_tokenizer import BYTES
from harness.recipes.pretrained import read_tokenizer
from harness.supervision.run_lock import FolderLock
from harness.supervision.safe_files import make_own, write_own
from harness.watch.progress import counted

EDGE = 1 << 16
"""Bytes at either end of a text file by which it is known again."""
BATCH = 1 << 20
"""Characters that are given to the tokenizer at once."""
_WORK = re.compile(rf"{re.escape(LOCK)}|{re.escape(ORIGIN)}|\.{{0,2}}[0-9]{{5,}}\.(bin|json)(\.[0-9a-f]+)?")
"""Matches the names of what is written before the folder is complete."""


@dataclass(frozen=True)
class Options:
    """How text becomes tokens. `tokenizer`: a folder, or `bytes`; `eos`: the id behind each document, None for none."""

    tokenizer: str
    field: str
    vocabulary: int
    eos: int | None

    @property
    def dtype(self) -> str:
        """The smallest type that holds every id."""
        return "uint16" if self.vocabulary <= 1 << 16 else "uint32"


@dataclass(frozen=True)
class Done:
    """A part that is written: its tokens, documents that end in it, blocks with bytes that are not UTF-8, and a digest."""

    tokens: int
    documents: int
    replaced: int
    digest: str


def tokenize(
    given: Sequence[Path], out: Path, *, tokenizer: str, suffixes: Sequence[str], field: str, eos: bool, procs: int
) -> str:
    """Write the tokens of files into the folder `out`; what was done, in a line. Raises UserError."""
    options = _options(tokenizer, field, eos=eos)
    files = text_files(given, suffixes)
    parts = text_parts(files)
    origin = _origin(files, options)
    make_own(out, "--out")
    if _is_complete(out, origin):
        return f"{out} is complete already"
    lock = FolderLock(out, "--out")
    try:
        lock.take("launcher", "widebatch tokenize")
        if _is_complete(out, origin):  # meanwhile
            return f"{out} is complete already"
        write_own(out / ORIGIN, json.dumps({"origin": origin}))
        return _finish(_all(parts, out, options, procs), out, options, origin)
    finally:
        lock.close()


def _is_complete(out: Path, origin: str) -> bool:
    """Whether all is done in a folder. Raises UserError if it holds something else."""
    for record in (out / INDEX, out / ORIGIN):
        if record.is_file():
            _check_origin(record, origin)
            return record.name == INDEX
    if any(path.name != LOCK for path in out.iterdir()):
        raise UserError("--out", f"{out} is not empty", "give a new folder")
    return False


def _options(tokenizer: str, field: str, *, eos: bool) -> Options:
    """Raises UserError if there is no such tokenizer, or it has no token to put between documents."""
    if tokenizer == "bytes":
        size, end = BYTES, None
    else:
        words = _words(tokenizer)
        size, end = max(words.get_vocab().values()) + 1, words.eos_token_id
    if eos and end is None:
        at = f"{tokenizer!r} has no token for the end of a text, to put between documents"
        raise UserError("--tokenizer", at, "give another, or --no-eos")
    return Options(tokenizer, field, size, end if eos else None)


def _words(tokenizer: str) -> Any:
    try:
        return read_tokenizer(tokenizer, "tokenizer")
    except UserError as e:
        raise UserError("--tokenizer", e.problem, "give a folder with a tokenizer, or `bytes`") from e


def _origin(files: Sequence[Path], options: Options) -> str:
    """A digest of what the tokens are made of: names, sizes and ends of the files, and the tokenizer."""
    state = xxhash.xxh3_128(json.dumps([options.field, options.vocabulary, options.eos]).encode())
    for path in [*files, *_tokenizer_files(options.tokenizer)]:
        size = path.stat().st_size
        state.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            state.update(file.read(EDGE))
            file.seek(max(size - EDGE, 0))
            state.update(file.read(EDGE))
    return state.hexdigest()


def _tokenizer_files(tokenizer: str) -> list[Path]:
    """The files of a tokenizer's folder that say how text is cut."""
    if tokenizer == "bytes":
        return []
    names = ("tokenizer", "vocab", "merges", "special_tokens", "added_tokens", "spiece", "sentencepiece")
    return sorted(p for p in Path(tokenizer).iterdir() if p.name.startswith(names) and p.is_file())


def _check_origin(record: Path, origin: str) -> None:
    """Raises UserError if a folder holds tokens of something else."""
    try:
        before = json.loads(record.read_text()).get("origin")
    except (OSError, ValueError, AttributeError) as e:
        raise UserError("--out", f"{record} cannot be read ({e})", "give a new folder") from e
    if before != origin:
        raise UserError("--out", f"{record.parent} holds tokens of other files, or of another tokenizer", "give a new folder")


def _all(parts: Sequence[tuple[Span, ...]], out: Path, options: Options, procs: int) -> list[Done]:
    """Write every part that is not there yet. Raises UserError."""
    found = [_found(out, number, options) for number in range(len(parts))]
    left = [number for number, one in enumerate(found) if one is None]
    pool = ProcessPoolExecutor(max(min(procs, len(left)), 1), get_context("spawn"), initializer=_begin)
    with pool, counted("parts", len(parts), len(parts) - len(left)) as told:
        jobs = {pool.submit(_part, parts[number], out, number, options): number for number in left}
        try:
            for job in as_completed(jobs):
                one = found[jobs[job]] = job.result()
                told(f"{_name(jobs[job])}: {one.tokens:,} tokens")
        except BrokenProcessPool as e:
            at = "a process was killed, perhaps out of memory"
            raise UserError("--procs", at, "give fewer processes in the same command: finished parts are kept") from e
        finally:
            pool.shutdown(cancel_futures=True)
    return [one for one in found if one is not None]


def _begin() -> None:
    """A process begins: it has one core, so its tokenizer starts no threads, and it ends when the command does."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()


def _part(spans: Sequence[Span], out: Path, number: int, options: Options) -> Done:
    """Write one part, and its counts when it is whole. Raises UserError."""
    draft, path = out / f".{_name(number)}.{os.urandom(8).hex()}", out / _name(number)
    state, tokens, documents, replaced = xxhash.xxh3_128(), 0, 0, 0
    with draft.open("xb") as file:
        for batch in _batches(chain.from_iterable(pieces(span, options.field) for span in spans)):
            ids = _encoded(batch, options)
            file.write(ids.tobytes())
            state.update(ids.tobytes())
            tokens += len(ids)
            documents += sum(piece.ends for piece in batch)
            replaced += sum(piece.replaced for piece in batch)
    draft.replace(path)
    done = Done(tokens, documents, replaced, state.hexdigest())
    write_own(_record(out, number), json.dumps(asdict(done)))
    return done


def _batches(text: Iterator[Piece]) -> Iterator[list[Piece]]:
    """Pieces, about BATCH characters at a time."""
    batch: list[Piece] = []
    size = 0
    for piece in text:
        batch.append(piece)
        size += len(piece.text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encoded(batch: Sequence[Piece], options: Options) -> Any:
    """The ids of some pieces, one after another, with `eos` behind each document."""
    texts = [piece.text for piece in batch]
    if options.tokenizer == "bytes":
        rows: Any = [list(text.encode()) for text in texts]
    else:
        rows = _words(options.tokenizer)(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    ends = [[options.eos] if piece.ends and options.eos is not None else [] for piece in batch]
    return np.array([i for row, end in zip(rows, ends, strict=True) for i in (*row, *end)], options.dtype)


def _found(out: Path, number: int, options: Options) -> Done | None:
    """A part that an earlier start has written whole."""
    try:
        done = msgspec.json.decode(_record(out, number).read_bytes(), type=Done)
        size = (out / _name(number)).stat().st_size
    except (OSError, msgspec.MsgspecError):
        return None
    return done if size == done.tokens * np.dtype(options.dtype).itemsize else None


def _name(number: int) -> str:
    return f"{number:05}.bin"


def _record(out: Path, number: int) -> Path:
    return out / f".{number:05}.json"


def _finish(done: Sequence[Done], out: Path, options: Options, origin: str) -> str:
    """Write tokens.json, and remove what is no longer needed. Raises UserError if there is no text."""
    tokens, replaced = sum(one.tokens for one in done), sum(one.replaced for one in done)
    if tokens < 2:
        raise UserError("FILES", f"hold {tokens} tokens in all", "give files with text")
    whole = {_name(number): one.tokens for number, one in enumerate(done) if one.tokens}
    index = {
        "dtype": options.dtype,
        "vocabulary": options.vocabulary,
        "eos": options.eos,
        "tokens": tokens,
        "documents": sum(one.documents for one in done),
        "replaced": replaced,
        "digest": xxhash.xxh3_128_hexdigest("".join(one.digest for one in done).encode()),
        "origin": origin,
        "files": whole,
    }
    write_own(out / INDEX, json.dumps(index, indent=1))
    for path in out.iterdir():
        if _WORK.fullmatch(path.name) and path.name not in whole:
            path.unlink()
    odd = f"; {replaced:,} blocks had bytes that are not UTF-8, now U+FFFD" if replaced else ""
    return f"{tokens:,} tokens of {index['documents']:,} documents in {out}, {options.dtype}{odd}"
