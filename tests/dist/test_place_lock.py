"""A place of checkpoints belongs to one run at a time, on a disk and on a store; only what a run owns is ever deleted."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.checkpoint import place_lock
from harness.checkpoint.manifest import RankedCheckpoint, to_delete
from harness.checkpoint.place_lock import LEASE, hold
from harness.checkpoint.place_owner import MARK
from harness.config.errors import UserError
from harness.config.run_folder import LOCK
from harness.telemetry.events import Saved
from tests.dist.test_saving import codes, config, run
from tests.dist.test_stores import served
from tests.support.processes import ROOT, environ

__all__ = ["served"]
HOLDER = """
import sys
from pathlib import Path
from harness.checkpoint import place_lock
place_lock.RENEW_S = 0.2
held = place_lock.hold(sys.argv[1], Path(sys.argv[2]))
print("held", flush=True)
sys.stdin.read()
held.close()
"""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that is stale soon: a renewal every 0.2 s of another process falls in these 20 s on any machine."""
    monkeypatch.setattr(place_lock, "STALE_S", 20.0)
    monkeypatch.setattr(place_lock, "RENEW_S", 0.4)


@pytest.fixture(params=["disk", "store"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "ck") if request.param == "disk" else str(request.getfixturevalue("served")[0])


def holder(where: str, folder: Path) -> "subprocess.Popen[str]":
    """Another process that holds the place."""
    argv = [sys.executable, "-c", HOLDER, where, str(folder)]
    other = subprocess.Popen(argv, cwd=ROOT, env=environ(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    for line in other.stdout:
        if line == "held\n":
            return other
    raise AssertionError("it could not take the place")


@pytest.fixture
def others() -> Iterator[list["subprocess.Popen[str]"]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for one in started:
        one.kill()
        one.communicate()


def test_a_second_run_at_once_is_refused_before_it_reads_or_deletes_anything(
    where: str, tmp_path: Path, quick: None, others: list["subprocess.Popen[str]"]
) -> None:
    others.append(holder(where, tmp_path / "one"))
    with pytest.raises(UserError, match=r"checkpoint\.dir: .* is in use by .*; wait for it, stop it, or give another checkpoint"):
        run(config({"checkpoint": {"dir": where}}), tmp_path / "two")
    assert not (tmp_path / "two" / "checkpoints").exists()
    others[0].communicate("")  # it ends well
    hold(where, tmp_path / "two").close()


def test_a_run_that_was_killed_leaves_no_lock_for_ever(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: list["subprocess.Popen[str]"]
) -> None:
    one = holder(where, tmp_path / "one")
    others.append(one)
    one.send_signal(signal.SIGKILL)
    one.wait()
    monkeypatch.setattr(place_lock, "STALE_S", 1.0)
    hold(where, tmp_path / "two").close()


def test_the_same_run_folder_takes_its_lease_back_at_once(served: tuple[str, Path], tmp_path: Path) -> None:
    url, folder = served
    one = holder(url, tmp_path / "one")
    one.kill()
    one.communicate()
    assert json.loads((folder / LEASE).read_text())["owner"] == (tmp_path / "one" / "owner").read_text()
    hold(url, tmp_path / "one").close()  # with the true STALE_S of 90 s this would be seen
    assert not (folder / LEASE).exists()


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", "x", '{"owner": 3}', "[" * 5000])
def test_an_odd_lease_is_waited_for_and_taken_over(
    text: str, served: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder = served
    folder.mkdir(parents=True)
    (folder / LEASE).write_text(text)
    monkeypatch.setattr(place_lock, "STALE_S", 0.2)
    hold(url, tmp_path / "run").close()
    assert not (folder / LEASE).exists()


def test_a_lease_that_another_has_taken_is_said_once_and_left_to_it(
    served: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url, folder = served
    monkeypatch.setattr(place_lock, "RENEW_S", 0.05)
    held = hold(url, tmp_path / "run")
    assert isinstance(held, place_lock._StorePlace)
    (folder / LEASE).write_text('{"owner": "x", "holder": "another"}')
    held._thread.join(1200)
    held.close()
    assert capsys.readouterr().err.count("has taken the lease") == 1
    assert json.loads((folder / LEASE).read_text())["holder"] == "another"


def saves(place: Path) -> list[str]:
    return [p.name[-3:] for p in sorted(place.glob("samples-*"))]


def contents(place: Path) -> dict[Path, bytes]:
    """All files but the lock, which says who took it last."""
    return {p: p.read_bytes() for p in place.rglob("*") if p.is_file() and p.name != LOCK}


def test_a_run_that_goes_on_owns_the_saves_of_before(tmp_path: Path) -> None:
    place = str(tmp_path / "ck")
    first = config({"checkpoint": {"every_samples": 80, "keep": 1, "dir": place}, "run": {"stop_after_steps": 20}})
    assert [e.path[-3:] for e in run(first, tmp_path / "one") if isinstance(e, Saved)] == ["080", "160"]
    state = tmp_path / "ck" / "samples-000000000160" / "state.json"
    lineage = json.loads(state.read_text())["state"]["lineage"]
    assert len(lineage) == 16
    (tmp_path / "one").rename(tmp_path / "two")
    run(first, tmp_path / "two")  # continues under another name, and so owns them
    assert saves(tmp_path / "ck") == ["320"]
    assert json.loads((tmp_path / "ck" / "samples-000000000320" / "state.json").read_text())["state"]["lineage"] == lineage
    shutil.rmtree(tmp_path / "two")
    assert "resumed" in codes(run(first, tmp_path / "two")), "on a machine that keeps no run folder its path is the same"


def test_another_run_folder_neither_continues_nor_prunes_what_a_run_saved(where: str, tmp_path: Path, quick: None) -> None:
    first = config({"checkpoint": {"every_samples": 80, "keep": 1, "dir": where}, "run": {"stop_after_steps": 20}})
    run(first, tmp_path / "one")
    place = tmp_path / "ck" if "://" not in where else tmp_path / "served" / "runs" / "a"
    before = contents(place)
    shutil.copytree(tmp_path / "one", tmp_path / "copied")
    for other in ("two", "copied"):
        with pytest.raises(UserError) as caught:
            run(first, tmp_path / other)
        assert str(caught.value) == (
            f"checkpoint.dir: {where} holds the checkpoints of the run in {tmp_path / 'one'}, and run.dir is {tmp_path / other}; "
            f"give another checkpoint.dir, or --run.dir {tmp_path / 'one'} to continue that run; "
            "`widebatch branch` starts from its weights"
        )
        assert contents(place) == before
    assert "resumed" in codes(run(first, tmp_path / "one"))


def test_the_checkpoints_in_a_run_folder_are_of_that_run(tmp_path: Path) -> None:
    run(config({"run": {"stop_after_steps": 5}}), tmp_path / "one")
    (tmp_path / "one" / "events.jsonl").touch()  # as its journal does
    kept = saves(tmp_path / "one" / "checkpoints")
    with pytest.raises(UserError, match=rf"checkpoint\.dir: .* holds the checkpoints of the run in {tmp_path / 'one'}, and run"):
        run(config({"checkpoint": {"dir": str(tmp_path / "one" / "checkpoints")}}), tmp_path / "two")
    assert saves(tmp_path / "one" / "checkpoints") == kept
    own = {"checkpoint": {"dir": str(tmp_path / "one" / "checkpoints")}}
    assert "resumed" in codes(run(config(own), tmp_path / "one")), "its own place by its path is its own"


def test_a_place_within_a_checkpoint_or_among_those_of_another_run_is_refused(where: str, tmp_path: Path) -> None:
    """Where that run deletes its old checkpoints, these would go with them."""
    run(config({"checkpoint": {"dir": where}, "run": {"stop_after_steps": 5}}), tmp_path / "one")
    run(config({"run": {"stop_after_steps": 5}}), tmp_path / "two")
    (tmp_path / "two" / "events.jsonl").touch()  # as its journal does
    before = contents(tmp_path)
    inside = [f"{where}/samples-000000000040"]
    if "://" not in where:
        inside += [f"{where}/samples-000000000040/mine", str(tmp_path / "two" / "checkpoints" / "a" / "b")]
    for place in inside:
        with pytest.raises(UserError, match=r"checkpoint\.dir: .* (lies in a checkpoint|holds the checkpoints of the run in)"):
            run(config({"checkpoint": {"dir": place}}), tmp_path / "three")
    shutil.rmtree(tmp_path / "three", ignore_errors=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "mark", ["", "null", "[]", "{}", '{"folder": 3, "id": "x"}', "[" * 5000, "x" * 20000, '{"folder": "/a\\n", "id": "x"}']
)
def test_an_odd_mark_is_none_and_is_replaced(mark: str, tmp_path: Path) -> None:
    first = config({"checkpoint": {"dir": str(tmp_path / "ck")}, "run": {"stop_after_steps": 2}})
    run(first, tmp_path / "one")
    (tmp_path / "ck" / MARK).write_text(mark)
    assert "resumed" in codes(run(first, tmp_path / "one"))
    assert json.loads((tmp_path / "ck" / MARK).read_text())["folder"] == str(tmp_path / "one")


def test_what_is_deleted_is_chosen_among_the_own(tmp_path: Path) -> None:
    place = str(tmp_path / "ck")
    of_other = config({"checkpoint": {"every_samples": 160, "dir": place}, "run": {"stop_after_steps": 20, "seed": 5}})
    run(of_other, tmp_path / "other")
    (tmp_path / "ck").rename(tmp_path / "aside")
    own = config({"checkpoint": {"every_samples": 80, "keep": 1, "dir": place}, "run": {"stop_after_steps": 10}})
    run(own, tmp_path / "own")
    (tmp_path / "aside" / "samples-000000000160").rename(tmp_path / "ck" / "samples-000000000040")  # older than what is to come
    events = run(replace(own, run=replace(own.run, stop_after_steps=10)), tmp_path / "own")
    assert "resumed" in codes(events)
    assert [p.name[-3:] for p in sorted((tmp_path / "ck").glob("samples-*"))] == ["040", "160"]


def test_without_a_lineage_what_is_deleted_is_as_in_version_0_1() -> None:
    found = [RankedCheckpoint(f"samples-{n:012d}") for n in (64, 128, 192)]
    assert to_delete(found, found[-1].name, keep=1, keep_best=0) == [found[0].name, found[1].name]


@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_a_mark_that_is_no_plain_file_is_one_line_and_is_not_followed(kind: str, tmp_path: Path) -> None:
    first, mark = config({"checkpoint": {"dir": str(tmp_path / "ck")}, "run": {"stop_after_steps": 2}}), tmp_path / "ck" / MARK
    run(first, tmp_path / "one")
    mark.unlink()
    (tmp_path / "victim").write_text("kept")
    if kind == "pipe":
        os.mkfifo(mark)
    elif kind == "folder":
        mark.mkdir()
    else:
        mark.symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match=r"checkpoint\.dir: '.*' cannot be used: owner\.json is not a plain file; give"):
        run(first, tmp_path / "one")
    assert (tmp_path / "victim").read_text() == "kept"
