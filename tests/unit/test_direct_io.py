"""A file holds what was written whichever way it took: past the kernel's cache, or through it where that is all there is."""

import mmap
import os
import shutil
import tempfile
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
import xxhash

from harness.checkpoint import direct_io as past_cache
from harness.checkpoint.direct_io import LARGE, PAGE
from harness.checkpoint.manifest import Digest
from harness.checkpoint.storage import LocalStore


@pytest.mark.parametrize("place", ["disk", "memory", "no such way"])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("sizes", [(PAGE, 3 * LARGE), (PAGE, LARGE, LARGE + 5, 7), (100, 2 * LARGE), (LARGE - 1,), (0,)])
def test_large_blocks_go_past_the_cache_where_they_can_and_arrive_whole_where_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, offset: int, sizes: tuple[int, ...]
) -> None:
    if place == "no such way":
        monkeypatch.setattr(past_cache, "_DIRECT", 0)
    root = Path(tempfile.mkdtemp(dir="/dev/shm")) if place == "memory" else tmp_path
    try:
        memory = mmap.mmap(-1, sum(sizes) + offset + 1)
        memory[:] = os.urandom(len(memory))
        ends = [offset, *(offset + n for n in accumulate(sizes))]
        store = LocalStore(root)
        folder = store.begin("samples-000000000001", "job")
        found = store.write(folder, "tensors", [memoryview(memory)[a:b] for a, b in pairwise(ends)])
        whole = memory[offset : ends[-1]]
        assert (root / folder / "tensors").read_bytes() == whole
        assert found == Digest(len(whole), xxhash.xxh3_128_hexdigest(whole))
    finally:
        shutil.rmtree(root)
