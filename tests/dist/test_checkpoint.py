"""Checkpoints cannot lie: what was written is read, and whatever is damaged, foreign or hostile is not."""

import dataclasses
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file

from harness.checkpoint.json_pipe import JsonLineReader, send
from harness.checkpoint.manifest import (
    STATE,
    DamagedError,
    RankedCheckpoint,
    decode,
    digest,
    encode,
    free_name,
    newest_first,
    to_delete,
)
from harness.checkpoint.reader import Checkpoint, load, newest, store_at
from harness.checkpoint.safetensors_io import header, lay_out, read_header
from harness.checkpoint.storage import LocalStore, open_store
from harness.checkpoint.writer_process import NotWrittenError, commit, write_part
from harness.config.errors import UserError
from tests.support.faults.calls import install
from tests.support.faults.checkpoints import arrays_of, damage, memory_of, save, task_of
from tests.support.processes import ROOT

CORRUPTIONS = 60
"""Of 1,000 in tests/soak/checkpoints.py."""


def same(found: Checkpoint, seed: int, elements: int = 300) -> bool:
    """Whether the tensors are those that `save` wrote."""
    for name, array in arrays_of(seed, elements).items():
        tensor = found.tensors.whole(name)
        if not np.array_equal(tensor.view(torch.int16).numpy() if array.dtype == np.uint16 else tensor.numpy(), array):
            return False
    return True


def test_what_was_written_is_read_and_older_ones_go(tmp_path: Path) -> None:
    for samples in (64, 128, 192):
        save(str(tmp_path), samples)
    found, complaints = newest(str(tmp_path))
    assert found is not None
    assert (found.name, found.state.samples, complaints) == ("samples-000000000192", 192, [])
    assert same(found, 192)
    assert found.tensors.read("model/weight", 100, 250).tolist() == arrays_of(192)["model/weight"].reshape(-1)[100:250].tolist()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["samples-000000000128", "samples-000000000192"]


def test_the_files_are_safetensors_both_ways(tmp_path: Path) -> None:
    save(str(tmp_path), 64)
    theirs = load_file(tmp_path / "samples-000000000064" / "tensors-0000-of-0002.safetensors")
    assert theirs["0:model/weight"].tolist() == arrays_of(64)["model/weight"].reshape(-1)[:150].tolist()
    save_file(
        {"0:b": np.arange(5.0), "3:a": np.arange(3, dtype=np.int32)}, tmp_path / "x", metadata={"shapes": '{"a": [6], "b": [5]}'}
    )
    data = (tmp_path / "x").read_bytes()
    entries, begin = read_header(len(data), lambda first, last: data[first:last])
    assert {(e.name, e.shape, e.start, e.count, e.dtype) for e in entries} == {("b", (5,), 0, 5, "F64"), ("a", (6,), 3, 3, "I32")}
    assert all(
        np.frombuffer(data[begin + e.first : begin + e.last], np.float64).tolist() == [0, 1, 2, 3, 4]
        for e in entries
        if e.name == "b"
    )


def test_every_damage_is_seen_and_the_one_before_is_used(tmp_path: Path) -> None:
    rng = random.Random(0)  # noqa: S311  to be repeated
    save(str(tmp_path / "whole"), 64)
    save(str(tmp_path / "whole"), 128)
    for number in range(CORRUPTIONS):
        shutil.copytree(tmp_path / "whole", tmp_path / str(number))
        what = damage(tmp_path / str(number) / "samples-000000000128", rng)
        found, complaints = newest(str(tmp_path / str(number)))
        assert found is not None, what
        assert found.state.samples == 64, what
        assert same(found, 64), what
        assert complaints[0].startswith("samples-000000000128: "), what


def test_no_bit_of_a_manifest_may_flip() -> None:
    text = encode({STATE: digest([b"x"]), "tensors-0000-of-0001.safetensors": digest([b"y"])})
    assert set(decode(text)) == {STATE, "tensors-0000-of-0001.safetensors"}
    for bit in range(8 * len(text)):
        flipped = bytearray(text)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamagedError):
            decode(bytes(flipped))


def forge(folder: Path) -> None:
    """Write a manifest that fits the files as they are: what a hostile hand would do."""
    files = {p.name: digest([p.read_bytes()]) for p in folder.iterdir() if p.name != "manifest.json"}
    (folder / "manifest.json").write_bytes(encode(files))


def bomb(folder: Path, path: Path) -> None:
    """A pickle that leaves a mark when it is loaded, under a name that invites it."""

    class Mark:
        def __reduce__(self) -> tuple[object, tuple[str, ...]]:
            return os.system, (f"touch {folder / 'RAN'}",)

    path.write_bytes(pickle.dumps(Mark()))


@pytest.mark.parametrize(
    "deed",
    ["pickle for a state", "pickle for tensors", "pickle beside", "path", "link", "linked folder", "header", "holes", "deep"],
)
def test_a_hostile_checkpoint_executes_nothing_and_is_refused(tmp_path: Path, deed: str) -> None:
    save(str(tmp_path / "c"), 64)
    folder = tmp_path / "c" / "samples-000000000064"
    tensors = folder / "tensors-0000-of-0002.safetensors"
    if deed == "pickle for a state":
        bomb(tmp_path, folder / STATE)
        forge(folder)
    elif deed == "pickle for tensors":
        bomb(tmp_path, tensors)
        forge(folder)
    elif deed == "pickle beside":
        bomb(tmp_path, folder / "data.pkl")
        forge(folder)
    elif deed == "path":
        (tmp_path / "outside").write_bytes(b"secret")
        files = decode((folder / "manifest.json").read_bytes()) | {"../../outside": digest([b"secret"])}
        (folder / "manifest.json").write_bytes(encode(files))
    elif deed == "link":
        tensors.rename(tmp_path / "elsewhere")
        tensors.symlink_to(tmp_path / "elsewhere")
    elif deed == "linked folder":
        folder.rename(tmp_path / "elsewhere")
        folder.symlink_to(tmp_path / "elsewhere")
    elif deed == "header":
        tensors.write_bytes((1 << 62).to_bytes(8, "little") + tensors.read_bytes()[8:])
        forge(folder)
    elif deed == "holes":
        tensors.write_bytes(tensors.read_bytes().replace(b'"data_offsets":[0,', b'"data_offsets":[8,', 1))
        forge(folder)
    else:
        (folder / STATE).write_text("[" * 100_000)
        forge(folder)
    found, complaints = newest(str(tmp_path / "c"))
    assert (found, len(complaints)) == (None, 1)
    assert not (tmp_path / "RAN").exists()


def test_a_header_whose_shapes_do_not_fit_its_bytes_is_refused() -> None:
    good = header(lay_out([("a", (4,), 0, 4, "F32")]))
    for old, new in ((b'"shape":[4]', b'"shape":[9]'), (b'"F32"', b'"F99"'), (b'"shape":[4]', b'"shape":[-4]'), (b"0:a", b"x:a")):
        data = good.replace(old, new) + bytes(16)
        assert data != good + bytes(16)
        with pytest.raises((ValueError, KeyError, TypeError)):
            read_header(len(data), lambda first, last, data=data: data[first:last])  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("model/weight", np.float32(np.nan)),
        ("model/half", np.uint16(0x7F80)),
        ("optimizer/weight/exp_avg", np.float32(-np.inf)),
        ("optimizer/weight/step", np.nan),
    ],
)
def test_what_is_not_finite_is_not_committed(tmp_path: Path, name: str, bad: float) -> None:
    arrays = arrays_of(1)
    arrays[name].reshape(-1)[-1] = bad
    store, task = LocalStore(tmp_path), task_of(str(tmp_path), 64, ranks=1)
    with pytest.raises(NotWrittenError, match=f"{name} is not finite"):
        write_part(store, task, memory_of(arrays))
    write_part(store, dataclasses.replace(task, job="again", exempt=(name,)), memory_of(arrays))


def test_which_checkpoints_stay() -> None:
    def row(*found: tuple[str, float | None, bool]) -> list[RankedCheckpoint]:
        return [RankedCheckpoint(named(name), score, well) for name, score, well in found]

    def named(short: str) -> str:
        samples, sep, again = short.partition("-")
        return f"samples-{samples:0>12}{sep}{again}"

    def dropped(found: list[RankedCheckpoint], here: str, keep: int, keep_best: int) -> list[str]:
        return [name.removeprefix("samples-").lstrip("0") for name in to_delete(found, named(here), keep, keep_best)]

    plain = row(("5", 0.5, True), ("4", None, True), ("3", 0.3, True), ("2", 0.2, True), ("1", 0.3, True))
    assert dropped(plain, "5", 2, 0) == ["3", "2", "1"]
    assert dropped(plain, "5", 1, 2) == ["4", "1"], "the two best, of equals the newer, and the newest"
    assert dropped(plain, "3", 2, 0) == ["5", "4", "1"], "what lies further on is of a past that was given up"
    ill = row(("5", None, False), ("4", None, False), ("3", None, True), ("2", None, True))
    assert dropped(ill, "5", 2, 0) == ["2"], "the newest that is well stays, to go back to"
    again = row(("4-2", None, True), ("4-1", None, True), ("4", None, True), ("3", float("nan"), True))
    assert dropped(again, "4-2", 2, 1) == ["4-1", "4"], "one of each place"


def test_the_same_place_saved_again_replaces_nothing_before_it_is_there(tmp_path: Path) -> None:
    save(str(tmp_path), 64)
    store = LocalStore(tmp_path)
    dropped: list[str] = []
    real, LocalStore.drop = LocalStore.drop, lambda self, folder: dropped.append(folder)  # type: ignore[method-assign]
    try:
        save(str(tmp_path), 64, store=store, seed=7)
    finally:
        LocalStore.drop = real  # type: ignore[method-assign]
    assert dropped == ["samples-000000000064"]
    assert store.names() == ["samples-000000000064-1", "samples-000000000064"]
    assert same(load(store, store.names()[0]), 7)
    assert free_name("samples-000000000064", store.names()) == "samples-000000000064-2"
    assert newest_first(["x", "samples-1", "samples-000000000009", "samples-000000000010-1"])[0] == "samples-000000000010-1"


def killed_at(where: str, samples: int, call: int) -> bool:
    """Save in a child that is killed at a call; whether it came to its end before."""
    child = os.fork()
    if child == 0:
        install("kill", call)
        save(where, samples)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFEXITED(status) or os.WTERMSIG(status) == signal.SIGKILL
    return os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0


def test_a_kill_at_any_write_rename_or_fsync_leaves_a_good_checkpoint(tmp_path: Path) -> None:
    """The last good one until the new one is committed, the new one from then on; and the next save goes through and cleans up."""
    saw, call = set(), 0
    while True:
        call += 1
        where = tmp_path / str(call)
        save(str(where), 64)
        save(str(where), 128)
        over = killed_at(str(where), 192, call)
        found, complaints = newest(str(where))
        assert found is not None
        assert complaints == []
        assert same(found, found.state.samples)
        saw.add(found.state.samples)
        if over:
            break
        save(str(where), 256)
        found, _ = newest(str(where))
        assert found is not None
        assert found.state.samples == 256
        assert len(list(where.glob("samples-*"))) == 2
        assert not list(where.glob(".samples-*.tmp"))
    assert saw == {128, 192}
    assert call > 30


def test_rank_0_waits_for_the_others_until_it_is_told_why_not(tmp_path: Path) -> None:
    store, task = LocalStore(tmp_path), task_of(str(tmp_path), 64)
    folder, _ = write_part(store, task, memory_of(arrays_of(1), 0, 2))
    orders, pen = os.pipe()
    send(pen, {"abandon": "the disk is not shared"})
    with pytest.raises(NotWrittenError, match="the disk is not shared"):
        commit(store, task, folder, JsonLineReader(orders))
    os.close(pen)
    with pytest.raises(NotWrittenError, match="its rank is gone"):
        commit(store, task, folder, JsonLineReader(orders))
    os.close(orders)
    assert store.names() == []


def test_a_rank_has_written_its_part_though_rank_0_takes_its_note_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, append = LocalStore(tmp_path), LocalStore.append

    def taken(self: LocalStore, folder: str, file: str, blocks: Iterable[Any]) -> None:
        append(self, folder, file, blocks)
        if file.startswith("note-"):
            self.remove(folder, file)
            self.commit(folder, "samples-000000000001", b"{}")

    monkeypatch.setattr(LocalStore, "append", taken)
    _, size = write_part(store, dataclasses.replace(task_of(str(tmp_path), 64), rank=1), memory_of(arrays_of(1), 1, 2))
    (written,) = (tmp_path / "samples-000000000001").glob("*.safetensors")
    assert written.stat().st_size == size


def test_the_writer_starts_without_torch() -> None:
    code = "import sys, harness.checkpoint.writer_process; "
    code += "print(sorted({'torch', 'msgspec', 'pydantic', 'fsspec'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_places_that_cannot_be_are_refused_in_words() -> None:
    for where, word in (
        ("memory://x", "one process"),
        ("ftp://me:secret@host/x", "credentials"),
        ("nosuch://x", "not a known store"),
    ):
        with pytest.raises(UserError, match=word) as error:
            store_at(where)
        assert error.value.setting == "checkpoint.dir"
        assert "secret" not in str(error.value)
    assert isinstance(open_store("file:///tmp/x"), LocalStore)


def test_state_is_plain_json(tmp_path: Path) -> None:
    save(str(tmp_path), 64)
    assert json.loads((tmp_path / "samples-000000000064" / STATE).read_text())["state"]["samples"] == 64


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.write_text(""), lambda path: path.symlink_to("/dev/zero")])
def test_what_is_named_as_a_checkpoint_and_is_no_folder_is_removed_by_its_name(
    make: Callable[[Path], object], tmp_path: Path
) -> None:
    """A pipe was opened to be looked through, and waited for."""
    store = LocalStore(tmp_path)
    for name in ("samples-000000000009", ".samples-000000000009.job.tmp"):
        make(tmp_path / name)
    store.drop("samples-000000000009")
    store.sweep("mine")
    assert list(tmp_path.iterdir()) == []


def test_digits_of_other_scripts_name_no_checkpoint() -> None:
    assert newest_first(["samples-\u0660" + 11 * "\u0661"]) == []
