"""Samples that lie in files at known places: any by its number, read by `pread`, from files of which some are open at a time."""

import glob
import os
import re
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, final

import numpy as np

from harness.config.errors import UserError

SETTING = "recipe.data"
OPEN = 128
"""Files that are open at a time."""
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class RecordFiles(ABC):
    """A data set of samples in several files, one after another. `counts`: the samples of each file."""

    def __init__(self, paths: Sequence[Path], counts: Sequence[int]) -> None:
        """Raises UserError, naming the file, for one without samples."""
        empty = next((path for path, count in zip(paths, counts, strict=True) if not count), None)
        if empty is not None:
            raise UserError(SETTING, f"{empty} holds no samples", "leave it out")
        self.paths = list(paths)
        self._first = np.cumsum([0, *counts])
        self._files = OpenFiles()

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, index: int) -> Any:
        file, row = self._place(index)
        return self.sample(file, row)

    def source(self, index: int) -> str:
        """The file of a sample, and its number in it."""
        file, row = self._place(index)
        return f"{self.paths[file]}, sample {row}"

    @abstractmethod
    def sample(self, file: int, row: int) -> Any:
        """Sample `row` of a file. Raises ValueError or OSError, with the file's name, if it cannot be read."""

    def read(self, file: int, offset: int, size: int) -> bytes:
        """So many bytes of a file. Raises OSError if they are not there."""
        found = os.pread(self._files.handle(self.paths[file]), size, offset)
        if len(found) < size:
            raise OSError(f"{self.paths[file]} ends within the sample at byte {offset:,}: it is cut off")
        return found

    def _place(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        file = int(np.searchsorted(self._first, index, side="right")) - 1
        return file, index - int(self._first[file])


@final
class OpenFiles:
    """Files that were read last, by path. Reads name their position, so that forked processes may share them."""

    def __init__(self) -> None:
        self._handles: OrderedDict[Path, int] = OrderedDict()

    def handle(self, path: Path) -> int:
        """A descriptor for reading."""
        if path in self._handles:
            self._handles.move_to_end(path)
            return self._handles[path]
        self._handles[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if len(self._handles) > OPEN:
            os.close(self._handles.popitem(last=False)[1])
        return self._handles[path]

    def __reduce__(self) -> tuple[type["OpenFiles"], tuple[()]]:
        """In another process they are opened again."""
        return OpenFiles, ()

    def __del__(self) -> None:
        for handle in self._handles.values():
            os.close(handle)


def file_paths(files: str | Sequence[str], suffix: str) -> list[Path]:
    """The files that a folder, a file, a pattern, a range (`shard-{000..127}.tar`) or several of them name, in order.

    Raises UserError for what names nothing, and by name for a file of a range that is missing.
    """
    found: list[Path] = []
    for text in [files] if isinstance(files, str) else files:
        if _RANGE.search(text):
            found += _ranged(text)
            continue
        path = Path(text)
        if path.is_dir():
            here = sorted(path.rglob(f"*{suffix}"))
        else:
            here = [path] if path.is_file() else sorted(map(Path, glob.glob(text, recursive=True)))  # noqa: PTH207  absolute ones too
        if not here:
            raise UserError(SETTING, f"{text!r} names no file", f"give a folder, a file or a pattern of {suffix} files")
        found += here
    return found


def _ranged(text: str) -> list[Path]:
    ranges = [[f"{n:0{len(a)}}" for n in range(int(a), int(b) + 1)] for a, b in _RANGE.findall(text)]
    parts = _RANGE.sub("\0", text).split("\0")
    paths = [Path("".join(a + b for a, b in zip(parts, (*numbers, ""), strict=True))) for numbers in product(*ranges)]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(SETTING, f"{missing[0]}{more} of {text} is missing", "bring it back, or name the files that are there")
    return paths
