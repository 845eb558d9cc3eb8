"""The branch test: what is compared, what is called safe, and real branches of a real run."""

import json
import os
import shutil
import stat
import sys
from pathlib import Path

import pytest

from harness.analysis.branch_test import Branch, largest_safe, rows, smoothed
from harness.checkpoint import reader as checkpoint
from harness.checkpoint.manifest import decode, digest, encode
from harness.checkpoint.train_state import State
from harness.config.errors import UserError
from harness.config.loader import load
from launch.lab.branch import read_ratios
from launch.processes.checkpoint_copy import copy, newest_good
from tests.support.faults.checkpoints import save
from tests.support.processes import ROOT, run_command


def test_the_smoothed_loss_is_the_mean_per_sample_of_the_second_half() -> None:
    losses = [(100, 9.0), (150, 4.0), (175, 2.0), (200, 1.0), (300, 50.0)]
    assert smoothed(losses, 100, 200) == pytest.approx(1.5)
    assert smoothed([(100, 9.0), (200, 3.0)], 100, 200) == 3.0, "one window over both halves counts"
    assert smoothed([(100, 9.0)], 100, 200) is None


def branches(*losses: float | None) -> list[Branch]:
    return [Branch(2**n, 32 * 2**n, 0.1, loss) for n, loss in enumerate(losses)]


def test_the_largest_safe_ratio_has_no_worse_one_below_it() -> None:
    assert largest_safe(branches(1.0, 1.005, 1.009, 1.02), eps=0.01).ratio == 4
    assert largest_safe(branches(1.0, 1.05, 1.0), eps=0.01).ratio == 1
    assert largest_safe(branches(1.0, 0.9, None), eps=0.01).ratio == 2
    assert largest_safe(branches(1.0, 0.9, 1.0), eps=0.01).ratio == 2, "no worse than every smaller batch, not than the first"
    with pytest.raises(ValueError, match="base"):
        largest_safe(branches(None, 1.0), eps=0.01)
    assert [r[-1] for r in rows(branches(1.0, 1.005, 1.05, None), eps=0.01)] == ["", "safe", "safe", "worse", "died"]


def test_ratios_are_whole_and_the_base_is_always_there() -> None:
    assert read_ratios("8,2") == [1, 2, 8]
    for text in ("", "1", "0,2", "a", "1.5"):
        with pytest.raises(UserError, match="--ratios"):
            read_ratios(text)


def test_branches_go_on_from_the_checkpoint_at_their_own_batch_and_rate(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    start = [sys.executable, "-m", "launch"]
    settings = ["--watch.wandb", "'off'", "--scaling.warmup_epochs", "1", "--batch.per_gpu", "64", "--run.stop_after_steps", "40"]
    settings += ["--checkpoint.dir", str(tmp_path / "kept")]
    run_command([*start, "train", str(ROOT / "configs" / "digits.yaml"), "--run.dir", str(run), *settings], ROOT)
    good, newer = tmp_path / "kept" / "samples-000000002560", tmp_path / "kept" / "samples-000000002624"
    shutil.copytree(good, newer)
    (newer / "state.json").write_bytes(b"{}")
    (good / "loop").symlink_to(".")
    (good / "passwd").symlink_to("/etc/passwd")
    told = run_command([*start, "branch", str(run), "--ratios", "4", "--samples", "2048", "--out", str(out)], ROOT)
    assert f"not used: {newer.name}: state.json is not what was written" in told
    assert f"branches go on from {good.name}" in told
    assert "largest safe batch at 2,560 samples" in told
    record = json.loads((out / "branch.json").read_text())
    base, wide = record["branches"]
    assert (base["batch"], wide["batch"]) == (64, 256)
    assert wide["lr"] == pytest.approx(2 * base["lr"])
    for name, batch in (("ratio-1", 64), ("ratio-4", 256)):
        lines = [json.loads(x) for x in (out / "trials" / name / "events.jsonl").read_text().splitlines()]
        steps = [x for x in lines if x["event"] == "step"]
        assert steps[0]["samples"] == 2560 + batch, "it resumes where the run stopped"
        assert steps[-1]["samples"] == 2560 + 2048
        assert steps[0]["train/lr"] == pytest.approx(base["lr"] * (batch / 64) ** 0.5)
    use = load(out / "run.yaml")
    assert use.batch.total in (64, 256)
    assert Path(str(use.run.dir)).parent == out / "trials", "it resumes where that branch ended"
    assert not (run / "checkpoints").exists(), "checkpoints are found where checkpoint.dir says"
    assert sorted(p.name for p in (tmp_path / "kept").glob("samples-*")) == [good.name, newer.name]
    assert not list((out / "trials").rglob("passwd"))
    shutil.rmtree(good)
    again = run_command([*start, "branch", str(run), "--ratios", "4", "--samples", "2048", "--out", str(out)], ROOT)
    assert "largest safe batch at 2,560 samples" in again, "the test keeps the start that it began with"


def hostile(folder: Path, kind: str) -> None:
    """Make of a checkpoint what must not be copied."""
    state, manifest = folder / "state.json", folder / "manifest.json"
    match kind:
        case "a damaged file":
            state.write_bytes(state.read_bytes()[:-1] + b" ")
        case "no manifest":
            manifest.unlink()
        case "an endless manifest":
            os.truncate(manifest, 1 << 40)
        case "a manifest of a manifest":
            manifest.write_text("[" * 200_000)
        case "damaged weights":
            tensors = next(folder.glob("tensors-*"))
            data = bytearray(tensors.read_bytes())
            data[-1] ^= 1
            tensors.write_bytes(data)
        case "a linked file":
            state.rename(folder.parent / "elsewhere")
            state.symlink_to(folder.parent / "elsewhere")
        case "a pipe":
            state.unlink()
            os.mkfifo(state)
        case "a folder for a file":
            state.unlink()
            state.mkdir()
        case "a linked folder":
            folder.rename(folder.parent / "elsewhere")
            folder.symlink_to("elsewhere")
        case "a state that makes no sense":
            tree = json.loads(state.read_bytes())
            tree["state"]["growth"] = 0
            state.write_text(json.dumps(tree))
            files = decode(manifest.read_bytes()) | {"state.json": digest([state.read_bytes()])}
            manifest.write_bytes(encode(files))


KINDS = [
    "a damaged file",
    "damaged weights",
    "no manifest",
    "an endless manifest",
    "a manifest of a manifest",
    "a linked file",
    "a pipe",
]
KINDS += ["a folder for a file", "a linked folder", "a state that makes no sense"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_that_does_not_verify_is_not_copied_and_the_one_before_it_is(tmp_path: Path, kind: str) -> None:
    place, own = str(tmp_path / "checkpoints"), tmp_path / "own"
    save(place, 64)
    save(place, 128)
    bad = tmp_path / "checkpoints" / "samples-000000000128"
    hostile(bad, kind)
    name, damaged = newest_good(place)
    assert name == "samples-000000000064"
    assert [text.partition(":")[0] for text in damaged] == [bad.name]
    with pytest.raises(UserError, match=f"{bad.name} at .* cannot be copied"):
        copy(place, bad.name, own)
    assert not list(own.rglob("*")), "nothing of it is left"
    found, _ = checkpoint.newest(place)
    assert found is not None
    assert found.name == name, "a run that continues takes the same one"


def test_of_a_checkpoint_only_what_its_manifest_names_is_copied(tmp_path: Path) -> None:
    place, own, name = tmp_path / "checkpoints", tmp_path / "own", "samples-000000000064"
    save(str(place), 64)
    checkpoint.add_evaluation(str(place), name, {"state": State(step=64, samples=64).to_json(), "about": {"score": 1.0}})
    named = sorted(p.name for p in (place / name).iterdir())
    (place / name / "home").symlink_to("/home")
    (place / name / "loop").symlink_to(".")
    os.mkfifo(place / name / "pipe")
    (place / name / "folder").mkdir()
    (place / name / "secret").write_text("secret")
    copy(str(place), name, own)
    assert sorted(p.name for p in (own / name).iterdir()) == named
    assert all(stat.S_ISREG(p.lstat().st_mode) for p in (own / name).iterdir())
    assert [p.name for p in own.iterdir()] == [name]


@pytest.mark.parametrize("kind", ["an endless manifest", "a manifest of a manifest", "a pipe", "a linked folder"])
def test_a_hostile_old_checkpoint_does_not_stop_a_save(tmp_path: Path, kind: str) -> None:
    place = str(tmp_path / "checkpoints")
    save(place, 64)
    hostile(tmp_path / "checkpoints" / "samples-000000000064", kind)
    save(place, 128)
    assert newest_good(place) == ("samples-000000000128", [])


def test_a_run_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    run_command([sys.executable, "-m", "launch", "branch", str(tmp_path)], ROOT, status=2)
