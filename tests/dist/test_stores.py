"""Checkpoints far away: on a server that is reached by a URL. A run saves there and resumes from there; damage there is seen."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from fsspec.implementations.local import LocalFileSystem

from harness.checkpoint.reader import newest
from harness.checkpoint.storage import RemoteStore
from harness.config.errors import UserError
from harness.telemetry.events import Noticed, Saved, Stepped
from launch.cli import main
from launch.processes.checkpoint_copy import copy, newest_good
from launch.processes.checkpoints import newest as launched_newest
from launch.processes.command import Command
from tests.dist.test_checkpoint import same
from tests.dist.test_saving import codes, config, run
from tests.support.faults.checkpoints import save
from tests.support.processes import ROOT


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """(URL, the folder it shows)."""
    folder = tmp_path / "served"
    folder.mkdir()
    argv = [sys.executable, "-m", "tests.dist.workers.ftp", str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(argv, cwd=ROOT, **pipes) as server:  # type: ignore[call-overload]
        yield f"ftp://127.0.0.1:{int(server.stdout.readline())}/runs/a", folder / "runs" / "a"
        server.stdin.close()


def test_a_run_saves_to_a_url_and_goes_on_from_it(served: tuple[str, Path], tmp_path: Path) -> None:
    url, folder = served
    far = {"checkpoint": {"every_samples": 80, "dir": url}}
    events = run(config(far | {"run": {"stop_after_steps": 20}}), tmp_path / "run")
    assert [e.path for e in events if isinstance(e, Saved)] == [f"{url}/samples-000000000080", f"{url}/samples-000000000160"]
    assert not (tmp_path / "run" / "checkpoints").exists()
    tensors = folder / "samples-000000000160" / "tensors-0000-of-0001.safetensors"
    data = bytearray(tensors.read_bytes())
    data[-1] ^= 1
    tensors.write_bytes(data)
    events = run(config(far), tmp_path / "run")
    assert codes(events)[:2] == ["damaged_checkpoint", "resumed"]
    assert sum(isinstance(e, Stepped) for e in events) == 50, "from the one before"
    assert "samples-000000000160: tensors-0000-of-0001.safetensors is not what was written" in next(
        e.message for e in events if isinstance(e, Noticed) and e.code == "damaged_checkpoint"
    )
    assert sorted(p.name for p in folder.iterdir()) == ["owner.json", "samples-000000000400", "samples-000000000480"]


def test_a_launcher_sees_and_copies_what_lies_at_a_url(served: tuple[str, Path], tmp_path: Path) -> None:
    """As it looks for progress, and as `widebatch branch` resumes from there."""
    url, folder = served
    assert launched_newest(url) == ""
    save(url, 64)
    save(url, 128)
    assert launched_newest(url) == "samples-000000000128"
    (folder / "samples-000000000128" / "state.json").write_text("{}")
    (folder / "samples-000000000064" / "stranger").write_text("not of the checkpoint")
    name, damaged = newest_good(url)
    assert (name, damaged) == ("samples-000000000064", ["samples-000000000128: state.json is not what was written"])
    copy(url, name, tmp_path / "own")
    found, complaints = newest(str(tmp_path / "own"))
    assert found is not None
    assert (same(found, 64), complaints) == (True, [])
    assert not (tmp_path / "own" / name / "stranger").exists()
    for bad in ("samples-000000000128", "samples-000000000999"):
        with pytest.raises(UserError, match=f"{bad} at ftp"):
            copy(url, bad, tmp_path / "other")
    assert list((tmp_path / "other").glob(".*")) + list((tmp_path / "other").glob("*")) == []


def test_without_its_manifest_a_folder_is_no_checkpoint_and_is_swept(served: tuple[str, Path]) -> None:
    url, folder = served
    save(url, 64)
    save(url, 128)
    (folder / "samples-000000000128" / "manifest.json").unlink()
    found, complaints = newest(url)
    assert found is not None
    assert (found.name, complaints) == ("samples-000000000064", [])
    assert same(found, 64)
    save(url, 192)
    RemoteStore(url).sweep("")
    assert sorted(p.name for p in folder.iterdir()) == ["samples-000000000064", "samples-000000000192"]


def test_the_same_place_saved_again_lies_beside_the_first_until_it_is_committed(served: tuple[str, Path]) -> None:
    url, folder = served
    save(url, 64)
    save(url, 64, seed=7)
    assert [p.name for p in folder.iterdir()] == ["samples-000000000064-1"]
    found, _ = newest(url)
    assert found is not None
    assert same(found, 7)


def test_a_launcher_looks_for_progress_where_the_checkpoints_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """checkpoint.dir, and not the run folder: else a run whose newest checkpoint is newer than at the last fault is given up."""
    seen: list[str] = []

    def supervise(command: Command, folder: Path, place: str, *rest: object) -> int:
        seen.append(place)
        return 0

    monkeypatch.setattr("launch.commands.launch.supervise", supervise)
    monkeypatch.setattr("launch.commands.launch.FolderLock", MagicMock())  # a launcher holds it to the end of its process
    argv = ["launch", str(ROOT / "configs" / "digits.yaml"), "--gpus", "0", "--procs", "2"]
    assert main([*argv, "--run.dir", str(tmp_path / "one"), "--checkpoint.dir", str(tmp_path / "kept")]) == 0
    assert main([*argv, "--run.dir", str(tmp_path / "two")]) == 0
    assert seen == [str(tmp_path / "kept"), str(tmp_path / "two" / "checkpoints")]
    assert launched_newest(seen[0]) == ""
    for samples in (64, 128):
        save(seen[0], samples)
    assert launched_newest(seen[0]) == "samples-000000000128"


class LibraryError(Exception):
    """As botocore's, which is no OSError."""


class AsS3(LocalFileSystem):  # type: ignore[misc]
    """A file system as s3fs is one: what comes second in cat_file is a version, a new folder makes its bucket, and its errors are
    its library's own."""

    protocol = "s3"
    refuses = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(auto_mkdir=True, **kwargs)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(path).removeprefix("s3:/").rstrip("/")

    def cat_file(
        self, path: str, version: int | None = None, start: int | None = None, end: int | None = None, **kwargs: Any
    ) -> Any:
        assert version is None
        return super().cat_file(path, start=start, end=end, **kwargs)

    def info(self, path: str, **kwargs: Any) -> Any:
        if AsS3.refuses:
            raise LibraryError("Could not connect to the endpoint")
        return super().info(path, **kwargs)


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(vars(sys.modules["fsspec.registry"])["_registry"], "s3", AsS3)  # `fsspec.registry` is a view of it
    return f"s3:/{tmp_path}/bucket/run"


def test_parts_of_a_file_are_asked_for_as_every_file_system_understands_it(bucket: str) -> None:
    store = RemoteStore(bucket)
    store.replace("small.json", b"hello world")
    assert store.read("", "small.json", 3, 8) == b"lo wo"


def test_what_a_store_s_library_raises_is_one_line(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AsS3, "refuses", True)
    with pytest.raises(UserError, match=r"checkpoint\.dir: .* cannot be used: LibraryError: Could not connect to the endpoint"):
        run(config({"checkpoint": {"dir": bucket}}), tmp_path / "run")
