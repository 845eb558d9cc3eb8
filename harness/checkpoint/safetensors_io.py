"""The file of one rank's pieces: safetensors, laid out and read here, so that it can be streamed from a staging buffer without
torch.

    8 bytes                length of the header, little-endian
    header                 JSON: {"__metadata__": {...}, KEY: {"dtype": "F32", "shape": [n], "data_offsets": [first, last]}, ...}
    data                   the tensors one after another, as `data_offsets` say, without a gap

A key is `START:NAME`: elements [START, START + n) of the tensor NAME; its whole shape is in the metadata. The format is the one
that https://github.com/huggingface/safetensors describes under "Format". What is read may be hostile: every number is checked.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

WIDTHS = {
    "C128": 16, "C64": 8, "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1, "F8_E8M0": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes of one element, by safetensors' names. C128 is ours: safetensors (0.8) has no name for complex128."""
LARGEST_HEADER = 100_000_000
"""The longest header in bytes: safetensors' own bound."""
_PREFIX = 8
ALIGNED = 4096
"""The data begin at a multiple of so many bytes, so that the kernel can take them to the disk from where they lie."""


@dataclass(frozen=True)
class Entry:
    """`count` elements of the tensor `name` of shape `shape`, from element `start` on, at byte `first` of the data."""

    name: str
    shape: tuple[int, ...]
    start: int
    count: int
    dtype: str
    first: int

    @property
    def last(self) -> int:
        """The byte after the entry's last."""
        return self.first + self.count * WIDTHS[self.dtype]


def lay_out(pieces: Iterable[tuple[str, tuple[int, ...], int, int, str]]) -> list[Entry]:
    """Places for pieces (name, shape, start, count, dtype): widest elements first, so that each lies on a multiple of its width."""
    entries, offset = [], 0
    for name, shape, start, count, dtype in sorted(pieces, key=lambda piece: -WIDTHS[piece[4]]):
        entries.append(Entry(name, shape, start, count, dtype, offset))
        offset = entries[-1].last
    return entries


def header(entries: Sequence[Entry]) -> bytes:
    """The bytes before the data (length and JSON header), padded with spaces to a multiple of ALIGNED bytes."""
    tree: dict[str, Any] = {"__metadata__": {"shapes": json.dumps({e.name: e.shape for e in entries})}}
    for e in entries:
        tree[f"{e.start}:{e.name}"] = {"dtype": e.dtype, "shape": [e.count], "data_offsets": [e.first, e.last]}
    text = json.dumps(tree, separators=(",", ":")).encode()
    text += b" " * (-(_PREFIX + len(text)) % ALIGNED)
    return len(text).to_bytes(_PREFIX, "little") + text


def read_header(size: int, read: Callable[[int, int], bytes]) -> tuple[list[Entry], int]:
    """(entries, byte at which the data begin) of a file of `size` bytes; `read(first, last)` gives its bytes.

    Raises ValueError, KeyError or TypeError where it is no such file.
    """
    length = int.from_bytes(read(0, _PREFIX), "little")
    if length > min(LARGEST_HEADER, size - _PREFIX):
        raise ValueError(f"a header of {length} bytes in a file of {size}")
    begin = _PREFIX + length
    tree = json.loads(read(_PREFIX, begin))
    shapes = json.loads(tree.pop("__metadata__")["shapes"])
    entries = [_entry(key, about, shapes) for key, about in tree.items()]
    offset = 0
    for e in sorted(entries, key=lambda e: (e.first, e.count)):
        if e.first != offset:
            raise ValueError(f"{e.name} lies at {e.first}, where {offset} is the next byte")
        offset = e.last
    if begin + offset != size:
        raise ValueError(f"{size} bytes, where the header says {begin + offset}")
    return entries, begin


def _entry(key: str, about: dict[str, Any], shapes: dict[str, list[int]]) -> Entry:
    """One tensor of a header, every number of it checked."""
    start, _, name = key.partition(":")
    (count,), (first, last) = about["shape"], about["data_offsets"]
    shape = tuple(shapes[name])
    if not all(type(n) is int and n >= 0 for n in (*shape, count, first)):
        raise ValueError(f"{name}: a size is not a whole number")
    entry = Entry(name, shape, int(start), count, about["dtype"], first)
    if entry.last != last:
        raise ValueError(f"{name}: {count} elements of {entry.dtype} in {last - first} bytes")
    return entry
