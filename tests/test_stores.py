"""Checkpoints far away: on a server that is reached by a URL. A run saves there and goes on from there; damage there is seen."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.engine.checkpoint import newest
from harness.engine.stores import RemoteStore
from harness.stats.events import Noticed, Saved, Stepped
from tests.dist.processes import ROOT
from tests.faults.checkpoints import save
from tests.test_checkpoint import same
from tests.test_saving import codes, config, run


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """(URL, the folder it shows)."""
    folder = tmp_path / "served"
    folder.mkdir()
    argv = [sys.executable, "-m", "tests.dist.ftp", str(folder)]
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
    events = run(config(far), tmp_path / "elsewhere")
    assert codes(events)[:2] == ["damaged_checkpoint", "resumed"]
    assert sum(isinstance(e, Stepped) for e in events) == 50, "from the one before"
    assert "samples-000000000160: tensors-0000-of-0001.safetensors is not what was written" in next(
        e.message for e in events if isinstance(e, Noticed) and e.code == "damaged_checkpoint"
    )
    assert sorted(p.name for p in folder.iterdir()) == ["samples-000000000400", "samples-000000000480"]


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
