"""Where checkpoints lie: a folder on a disk, or anywhere that fsspec reaches by a URL. Writes are durable, and a commit is atomic.

On a disk a save is written into a hidden folder, flushed, and committed by one rename. An object store has no rename: there the
manifest is written last, and a folder without one is no checkpoint. No torch in here: the writer process lives on it.
"""

import mmap
import os
import shutil
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, final

import xxhash
from typing_extensions import override

from harness.checkpoint import direct_io as past
from harness.checkpoint.manifest import EVALUATED, LARGEST_JSON, MANIFEST, Digest, free_name, newest_first, unseal
from harness.config.urls import OBJECT_STORES

BLOCK = 8 << 20
"""Bytes that are written and read at a time."""
Bytes = bytes | memoryview


class ShortReadError(OSError):
    """A file is shorter than it was said to be: damaged, or being written again at this moment."""


class Store(ABC):
    """A place for checkpoints. `folder` is a name that `begin` or `names` gave. What fails raises OSError."""

    @abstractmethod
    def names(self) -> list[str]:
        """The committed checkpoints, newest first."""

    @abstractmethod
    def begin(self, name: str, job: str) -> str:
        """A folder to write the files of a save into, the same for all ranks; `job` is the save's own."""

    @abstractmethod
    def commit(self, folder: str, name: str, manifest: bytes) -> str:
        """Turn the folder from `begin` into a checkpoint, atomically; returns its name."""

    @abstractmethod
    def drop(self, folder: str) -> None:
        """Delete a checkpoint, or what is left of a save."""

    @abstractmethod
    def sweep(self, job: str) -> None:
        """Delete uncommitted files of saves other than `job`."""

    @abstractmethod
    def append(self, folder: str, file: str, blocks: Iterable[Bytes]) -> None:
        """Write a new file, durably."""

    @abstractmethod
    def read_into(self, folder: str, file: str, first: int, out: memoryview, *, fresh: bool = False) -> None:
        """Fill `out` with a file's bytes from `first` on; `fresh`: from the disk itself, not from the page cache."""

    @abstractmethod
    def size(self, folder: str, file: str) -> int | None:
        """Bytes of a file, None if there is none. What is not a plain file raises OSError."""

    @abstractmethod
    def remove(self, folder: str, file: str) -> None:
        """Delete a file."""

    @abstractmethod
    def replace(self, file: str, data: bytes) -> None:
        """Write a small file beside the checkpoints whole, in the place of one of its name."""

    @abstractmethod
    def path(self, folder: str) -> str:
        """The path or URL of a folder, as messages show it."""

    def write(self, folder: str, file: str, blocks: Iterable[Bytes]) -> Digest:
        """Write a new file and read it back; its digest. Raises OSError if what is read differs from what was written."""
        found, total = xxhash.xxh3_128(), 0

        def passed() -> Iterator[Bytes]:
            nonlocal total
            for block in blocks:
                found.update(block)
                total += len(block)
                yield block

        self.append(folder, file, passed())
        wrote = Digest(total, found.hexdigest())
        if self.digest(folder, file, fresh=True) != wrote:
            raise OSError(f"{file} does not read back as it was written")
        return wrote

    def read(self, folder: str, file: str, first: int, last: int) -> bytes:
        """Bytes [first, last) of a file."""
        out = bytearray(last - first)
        self.read_into(folder, file, first, memoryview(out))
        return bytes(out)

    def digest(self, folder: str, file: str, *, fresh: bool = False) -> Digest:
        """Size and digest of a stored file; `fresh` as in `read_into`."""
        size = self.size(folder, file)
        if size is None:
            raise FileNotFoundError(f"{file} is missing")
        found, block = xxhash.xxh3_128(), memoryview(mmap.mmap(-1, min(max(size, 1), BLOCK)))  # a buffer that begins at a page
        for first in range(0, size, BLOCK):
            part = block[: min(BLOCK, size - first)]
            self.read_into(folder, file, first, part, fresh=fresh)
            found.update(part)
        return Digest(size, found.hexdigest())


@final
class LocalStore(Store):
    """A folder on a disk of this machine, or one that all machines see."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def root(self) -> Path:
        """The folder."""
        return self._root

    @override
    def names(self) -> list[str]:
        return newest_first(p.name for p in self._root.iterdir()) if self._root.is_dir() else []

    @override
    def begin(self, name: str, job: str) -> str:
        folder = f".{name}.{job}.tmp"
        (self._root / folder).mkdir(parents=True, exist_ok=True)
        return folder

    @override
    def commit(self, folder: str, name: str, manifest: bytes) -> str:
        self.append(folder, MANIFEST, [manifest])
        _flush(self._root / folder)
        final_name = free_name(name, self.names())
        (self._root / folder).rename(self._root / final_name)
        _flush(self._root)
        return final_name

    @override
    def drop(self, folder: str) -> None:
        """The folder is renamed before its first file is deleted, so that a half-deleted one is no checkpoint."""
        hidden = self._root / f".{folder.strip('.')}.drop"
        (self._root / folder).rename(hidden)
        _remove(hidden)

    @override
    def sweep(self, job: str) -> None:
        for found in self._root.glob(".samples-*"):
            if f".{job}." not in found.name:
                with suppress(OSError):
                    _remove(found)

    @override
    def append(self, folder: str, file: str, blocks: Iterable[Bytes]) -> None:
        handle, written = os.open(self._root / folder / file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644), 0
        try:
            for block in blocks:
                left = past.write(handle, memoryview(block), written)
                while left:
                    left = left[os.write(handle, left) :]
                written += len(block)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)  # so that it is read from the disk, not from the page cache
        finally:
            os.close(handle)

    @override
    def read_into(self, folder: str, file: str, first: int, out: memoryview, *, fresh: bool = False) -> None:
        handle = os.open(self._root / folder / file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # opening a pipe would block
        try:
            got = past.read(handle, out, first) if fresh else 0
            out, first = out[got:], first + got
            while out:
                got = os.preadv(handle, [out], first)
                if not got:
                    raise ShortReadError(f"{file} ends before byte {first + len(out)}")
                out, first = out[got:], first + got
        finally:
            os.close(handle)

    @override
    def size(self, folder: str, file: str) -> int | None:
        if stat.S_ISLNK(os.lstat(self._root / folder).st_mode):
            raise OSError("it is a link")
        try:
            found = os.lstat(self._root / folder / file)
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(found.st_mode):
            raise OSError(f"{file} is not a plain file")
        return found.st_size

    @override
    def remove(self, folder: str, file: str) -> None:
        (self._root / folder / file).unlink()

    @override
    def replace(self, file: str, data: bytes) -> None:
        from harness.supervision.safe_files import write_own  # which the writer process does without

        write_own(self._root / file, data)

    @override
    def path(self, folder: str) -> str:
        return str(self._root / folder)


@final
class RemoteStore(Store):
    """Anywhere that fsspec reaches: an object store, another machine. Credentials come from the environment, never from the URL."""

    def __init__(self, url: str) -> None:
        import fsspec

        self._url = url.rstrip("/")
        self._has_folders = url.partition("://")[0] not in OBJECT_STORES
        with _as_os_error():
            found: tuple[Any, str] = fsspec.core.url_to_fs(self._url, use_listings_cache=False, skip_instance_cache=True)
        self._fs, self._root = found

    @override
    def names(self) -> list[str]:
        return [name for name in self._folders() if self.size(name, MANIFEST) is not None]

    @override
    def begin(self, name: str, job: str) -> str:
        """The manifest of this save is written last, so all ranks see the same names until then."""
        folder = free_name(name, self.names())
        self._make(folder)
        return folder

    @override
    def commit(self, folder: str, name: str, manifest: bytes) -> str:
        self.write(folder, MANIFEST, [manifest])
        return folder

    @override
    def drop(self, folder: str) -> None:
        if self.size(folder, MANIFEST) is not None:
            self.remove(folder, MANIFEST)
        self._delete(folder)

    @override
    def sweep(self, job: str) -> None:
        """Drop older saves that were not committed; a save in progress is the newest."""
        committed = self.names()
        for folder in self._folders():
            if committed and folder not in committed and newest_first([folder, committed[0]])[0] != folder:
                self._delete(folder)

    @override
    def append(self, folder: str, file: str, blocks: Iterable[Bytes]) -> None:
        with _as_os_error(), self._fs.open(f"{self._at(folder)}/{file}", "wb") as f:
            for block in blocks:
                f.write(bytes(block))

    @override
    def read_into(self, folder: str, file: str, first: int, out: memoryview, *, fresh: bool = False) -> None:
        with _as_os_error():  # named arguments: their order differs between file systems
            got = self._fs.cat_file(f"{self._at(folder)}/{file}", start=first, end=first + len(out)) if out else b""
        if len(got) != len(out):
            raise ShortReadError(f"{file} ends before byte {first + len(out)}")
        out[:] = got

    @override
    def size(self, folder: str, file: str) -> int | None:
        try:
            with _as_os_error():
                self._fs.invalidate_cache()
                return int(self._fs.info(f"{self._at(folder)}/{file}")["size"])
        except FileNotFoundError:
            return None

    @override
    def remove(self, folder: str, file: str) -> None:
        with _as_os_error():
            self._fs.rm_file(f"{self._at(folder)}/{file}")

    @override
    def replace(self, file: str, data: bytes) -> None:
        self._make("")
        with _as_os_error():
            self._fs.pipe_file(self._at(file), data)

    @override
    def path(self, folder: str) -> str:
        return f"{self._url}/{folder}"

    def _folders(self) -> list[str]:
        """All folders with the name of a checkpoint, newest first."""
        try:
            with _as_os_error():
                self._fs.invalidate_cache()
                found = self._fs.ls(self._root, detail=False)
        except FileNotFoundError:
            return []
        return newest_first(path.rstrip("/").rpartition("/")[2] for path in found)

    def _make(self, folder: str) -> None:
        if self._has_folders:
            with _as_os_error():
                self._fs.makedirs(self._at(folder), exist_ok=True)

    def _delete(self, folder: str) -> None:
        with _as_os_error():
            self._fs.rm(self._at(folder), recursive=True)

    def _at(self, folder: str) -> str:
        return f"{self._root}/{folder}" if folder else str(self._root)


@contextmanager
def _as_os_error() -> Iterator[None]:
    """What a store's own library raises, as where it cannot be reached or lets nobody in, as an OSError."""
    try:
        yield
    except (OSError, ImportError, ValueError):
        raise
    except Exception as e:
        raise OSError(f"{type(e).__name__}: {e}") from e


def evaluated(store: Store, name: str) -> dict[str, Any] | None:
    """The state of a checkpoint after the evaluation that followed it; None if none did. Raises OSError."""
    size = store.size(name, EVALUATED)
    return None if size is None or size > LARGEST_JSON else unseal(store.read(name, EVALUATED, 0, size))


def open_store(where: str) -> Store:
    """The store at a path or URL. Raises ImportError, ValueError or OSError where fsspec cannot reach it."""
    if where.startswith("file://"):
        return LocalStore(Path(where.removeprefix("file://")))
    return RemoteStore(where) if "://" in where else LocalStore(Path(where))


def _remove(found: Path) -> None:
    """Delete a folder with all that is in it; anything else is unlinked without opening it, as opening a pipe would block."""
    if stat.S_ISDIR(found.lstat().st_mode):
        shutil.rmtree(found)
    else:
        found.unlink()


def _flush(folder: Path) -> None:
    """Make a folder's entries durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
