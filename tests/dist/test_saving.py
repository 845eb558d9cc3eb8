"""Saving a run: beside training, on all ranks or on none, as often as asked; on a full disk, with a writer that dies, far away."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from harness.checkpoint.reader import newest
from harness.config.errors import UserError
from harness.config.loader import decode
from harness.config.schema import CheckpointConfig, Config
from harness.data.feed import Table
from harness.plan.checkpoint_interval import Cadence, cadence, young_daly
from harness.plan.plan import plan
from harness.plan.world import World
from harness.recipes.base import Recipe, Split, Sum
from harness.telemetry.events import Ended, Evaluated, Event, Noticed, Saved, Stepped
from harness.training.loop import train
from harness.worker import work
from tests.dist.test_resume import journal, run_file, trained_ids
from tests.support.processes import LIMIT_S, ROOT, environ

SITE = ROOT / "tests" / "support" / "faults" / "site"


@dataclass(frozen=True)
class Line(Recipe):
    """Forty samples on a line. `shift` moves them; `masked` gives the model a buffer that is minus infinity, as masks are.

    `breaks` makes that evaluation fail, counted from that of one batch before training.
    """

    shift: float = 0.0
    masked: bool = False
    grow: float = 0.0
    """A knob that does nothing."""
    breaks: int = 0

    def model(self) -> nn.Module:
        """[n, 3] -> [n, 1]."""
        model = nn.Linear(3, 1)
        if self.masked:
            model.register_buffer("mask", torch.full((2, 2), float("-inf")))
        return model

    def data(self, split: Split) -> Table:
        """Columns x, y."""
        x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)) + self.shift
        return Table({"x": x, "y": x.sum(1, keepdim=True)})

    def loss(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> Sum:
        """Squared error."""
        return ((model(batch["x"]) - batch["y"]) ** 2).sum(), len(batch["x"])

    def metrics(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, Sum]:
        """The loss, unless this is the evaluation that breaks: each has 5 batches, but for the one before training."""
        passes = vars(model).setdefault("passes", [])
        passes.append(batch)
        if self.breaks and len(passes) > 1 + 5 * (self.breaks - 1):
            raise KeyError("metrics")
        return super().metrics(model, batch)


def config(over: Mapping[str, Any] | None = None, **knobs: Any) -> Config:
    """Sixty steps of 8."""
    base: dict[str, Any] = {
        "recipe": {"use": f"{__file__}:Line", **knobs},
        "batch": {"reference": 8, "total": 8},
        "optim": {"name": "adamw", "lr": 0.02},
        "schedule": {"samples": 480},
        "scaling": {"rule": "none"},
        "watch": {"wandb": "off", "every_steps": 3},
    }
    return decode(base | dict(over or {}))


def run(c: Config, folder: Path) -> list[Event]:
    """All events of a run in this process."""
    return list(train(c, plan(c, World(1, device="cpu"), 40), cpu=True, folder=folder))


def codes(events: list[Event]) -> list[str]:
    """The notices' codes."""
    return [e.code for e in events if isinstance(e, Noticed)]


def test_a_save_is_told_at_the_end_of_a_window_with_what_it_cost(tmp_path: Path) -> None:
    events = run(config({"checkpoint": {"every_samples": 48}}), tmp_path)
    saved = [e for e in events if isinstance(e, Saved)]
    assert [e.samples for e in saved] == list(range(48, 481, 48)), "each is waited for before the next, the last at the end"
    assert isinstance(events[-1], Ended)
    for e in saved:
        assert e.bytes > 100
        assert e.seconds > 0
        assert e.write_s > 0
    assert [p.name for p in (tmp_path / "checkpoints").iterdir() if not p.name.startswith("samples-")] == ["lock"]


def test_by_the_clock(tmp_path: Path) -> None:
    assert cadence(CheckpointConfig(every_minutes=2)) == Cadence(120, None)
    assert cadence(CheckpointConfig(every_samples=2)) == Cadence(None, None)
    assert cadence(CheckpointConfig()) == Cadence(None, 24 * 3600.0), "a run that says nothing is saved all the same"
    assert young_daly(2.0, 3600.0) == 120.0
    hourly = cadence(CheckpointConfig(mtbf_hours=1))
    assert hourly.interval_s(2.0, 5.0) == 120.0
    assert hourly.interval_s(2.0, 500.0) == 500.0, "not before the last one can be written"
    assert hourly.interval_s(None, 0.0) == pytest.approx(84.85, abs=0.01)
    with pytest.raises(UserError, match=r"every_samples 5 and every_minutes 3"):
        plan(config({"checkpoint": {"every_samples": 5, "every_minutes": 3.0}}), World(1, device="cpu"), 40)
    events = run(config({"checkpoint": {"every_minutes": 1e-9}}), tmp_path)
    assert [e.samples for e in events if isinstance(e, Saved)] == [8, *range(32, 481, 24), 480], "at the close of every window"


def test_the_best_stay_and_a_new_best_is_saved_at_once(tmp_path: Path) -> None:
    over = {"eval": {"every_samples": 40}, "checkpoint": {"every_samples": 400, "keep": 1, "keep_best": 2}, "optim": {"lr": 1.0}}
    events = run(config(over | {"schedule": {"samples": 480, "shape": "constant"}}), tmp_path)
    evals = {e.samples: e.metrics["eval/loss"] for e in events if isinstance(e, Evaluated)}
    saved = [e.samples for e in events if isinstance(e, Saved)]
    bests = [e.samples for e in events if isinstance(e, Evaluated) and e.best]
    assert set(saved) == {400, 480, *bests}
    kept = {int(p.name.removeprefix("samples-")) for p in (tmp_path / "checkpoints").glob("samples-*")}
    assert kept == {480, *sorted(saved, key=lambda s: evals[s] or 0.0)[:2]}


def test_a_mask_of_infinities_is_no_damage(tmp_path: Path) -> None:
    events = run(config(masked=True), tmp_path)
    assert "checkpoint_failed" not in codes(events)
    assert len([e for e in events if isinstance(e, Saved)]) == 1


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    """An optimizer that breaks a weight in a step whose loss and gradients were finite."""
    run(config({"run": {"stop_after_steps": 20}}), tmp_path)
    c = config({"checkpoint": {"every_samples": 48}})
    hook = register_optimizer_step_post_hook(lambda o, _a, _k: o.param_groups[0]["params"][0].data.fill_(float("nan")))
    try:
        events = run(c, tmp_path)
    finally:
        hook.remove()
    failed = [e.message for e in events if isinstance(e, Noticed) and e.code == "checkpoint_failed"]
    assert failed
    assert all("model/weight" in message and "not finite" in message for message in failed)
    found, _ = newest(str(tmp_path / "checkpoints"))
    assert found is not None
    assert found.state.samples == 160, "the last good one is as it was"


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Lets the variable FAULT reach writers (tests/support/faults/calls.py)."""
    monkeypatch.setenv("PYTHONPATH", str(SITE))
    return monkeypatch


def test_a_writer_that_dies_costs_one_checkpoint(tmp_path: Path, fault: pytest.MonkeyPatch) -> None:
    fault.setenv("FAULT", "kill:4")
    fault.setenv("FAULT_ONCE", str(tmp_path / "once"))
    events = run(config({"checkpoint": {"every_samples": 160}}), tmp_path / "run")
    failed = [e.message for e in events if isinstance(e, Noticed) and e.code == "checkpoint_failed"]
    assert failed == ["checkpoint not written: the writer process ended with -9"]
    assert [e.samples for e in events if isinstance(e, Saved)] == [320, 480]


@pytest.mark.parametrize("kind", ["full:3", "limit:600"])
def test_a_full_disk_stops_no_training_and_spoils_nothing(tmp_path: Path, fault: pytest.MonkeyPatch, kind: str) -> None:
    """Full from the third call on; and by the kernel's own limit of a file's size."""
    run(config({"run": {"stop_after_steps": 20}}), tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.glob("checkpoints/*/*")}
    fault.setenv("FAULT", kind)
    events = run(config({"checkpoint": {"every_samples": 160}}), tmp_path)
    assert codes(events).count("checkpoint_failed") == 2
    assert sum(isinstance(e, Stepped) for e in events) == 40
    assert {p: p.read_bytes() for p in tmp_path.glob("checkpoints/*/*")} == before
    assert list((tmp_path / "checkpoints").glob(".*")) == []
    fault.delenv("FAULT")
    run(config({"checkpoint": {"every_samples": 160}}), tmp_path)
    assert (tmp_path / "checkpoints" / "samples-000000000480").is_dir()


@pytest.mark.parametrize("over", [{}, {"run": {"stop_after_steps": 20}, "eval": {"every_samples": 160}}])
def test_the_end_is_saved_before_its_evaluation_which_is_then_added(tmp_path: Path, over: dict[str, Any]) -> None:
    """Also where that evaluation fails. What resumes from the checkpoint knows what the evaluation found."""
    with pytest.raises(KeyError):
        run(config(over, breaks=1), tmp_path / "broken")
    broken, _ = newest(str(tmp_path / "broken" / "checkpoints"))
    assert broken is not None
    assert (broken.about["score"], broken.state.last) == (None, {})
    events = run(config(over), tmp_path / "good")
    good, _ = newest(str(tmp_path / "good" / "checkpoints"))
    assert good is not None
    last = [e.metrics["eval/loss"] for e in events if isinstance(e, Evaluated)][-1]
    assert good.name == broken.name
    assert good.about["score"] == good.state.last["eval/loss"] == last
    (added,) = (tmp_path / "good").glob("checkpoints/*/evaluated.json")
    added.write_bytes(added.read_bytes()[:-9])
    assert newest(str(tmp_path / "good" / "checkpoints"))[0].about["score"] is None, "damaged, it is as if it were not there"  # type: ignore[union-attr]


NO_SPACE = "[Errno 28] No space left on device"


@pytest.mark.parametrize(
    ("kind", "error", "steps"),
    [
        ("full:1", NO_SPACE, None),
        ("full:1", NO_SPACE, 4),
        ("flush:1", "[Errno 5] Input/output error", 4),
        ("rename:1", "[Errno 18] Invalid cross-device link", 4),
    ],
)
def test_an_end_without_its_checkpoint_has_a_status_of_its_own(
    tmp_path: Path, fault: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str, error: str, steps: int | None
) -> None:
    fault.setenv("FAULT", kind)
    over: dict[str, Any] = {"run": {"stop_after_steps": steps}} if steps else {}
    reason = "stop_after_steps" if steps else "complete"
    c = config({"run": {"dir": str(tmp_path / "run")} | over.pop("run", {})} | over)
    assert work(c, "run", {"ACCELERATE_USE_CPU": "true"}) == 5
    told = " ".join(capsys.readouterr().out.split())
    assert f"{reason}, but its last checkpoint could not be written: rank 0: {error}" in told
    assert list((tmp_path / "run").glob("checkpoints/samples-*")) == []


def test_an_old_checkpoint_that_cannot_be_removed_is_said_once_and_costs_no_save(tmp_path: Path, fault: pytest.MonkeyPatch) -> None:
    fault.setenv("FAULT", "drop:1")
    events = run(config({"checkpoint": {"every_samples": 80, "keep": 1}}), tmp_path)
    saved = [e.samples for e in events if isinstance(e, Saved)]
    assert saved == [80, 160, 240, 320, 400, 480]
    assert codes(events).count("checkpoint_left") == 1
    assert "checkpoint_failed" not in codes(events)
    assert len(list(tmp_path.glob("checkpoints/samples-*"))) == 6
    fault.delenv("FAULT")
    run(config({"checkpoint": {"every_samples": 80, "keep": 1}, "schedule": {"samples": 560}}), tmp_path)
    assert len(list(tmp_path.glob("checkpoints/samples-*"))) == 1


def test_two_ranks_save_both_or_not_at_all(tmp_path: Path) -> None:
    """The disk of rank 1 is full: rank 0, whose part is safe, is told in a window's reading, and commits nothing."""
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "harness"]
    argv += [str(run_file(tmp_path, "total: 8")), "--checkpoint.every_samples", "100"]
    faulty = environ() | {"PYTHONPATH": f"{ROOT}{os.pathsep}{SITE}", "FAULT": "full:3:1"}
    done = subprocess.run(argv, cwd=tmp_path, env=faulty, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    failed = [n["message"] for n in journal(tmp_path, "notice") if n["code"] == "checkpoint_failed"]
    assert len(failed) == 5
    assert all("rank 1: [Errno 28] No space left on device" in message for message in failed)
    assert journal(tmp_path, "end")[-1]["reason"] == "unsaved"
    assert set(trained_ids(tmp_path).values()) == {4}
    assert list((tmp_path / "run" / "checkpoints").glob("samples-*")) == []


def test_a_writer_dies_with_its_rank(tmp_path: Path) -> None:
    code = (
        "import sys, torch\nfrom pathlib import Path\nfrom harness.checkpoint.staging import Staging\n"
        "from harness.checkpoint.tensor_slices import whole\ns = Staging(torch.device('cpu'))\n"
        "s.prepare([whole('model/x', torch.ones(3))])\nprint(s._writer.pid, flush=True)\nsys.stdin.read()\n"
    )
    rank = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert rank.stdout is not None
    writer = os.pidfd_open(int(rank.stdout.readline()))
    assert not select.select([writer], [], [], 0)[0]
    rank.send_signal(signal.SIGKILL)
    assert select.select([writer], [], [], 30)[0], "the writer outlives its rank"
    rank.communicate()
    os.close(writer)


def test_a_run_goes_on_for_a_hundred_steps_bit_for_bit(tmp_path: Path) -> None:
    """Weights and moments, float32: 20 steps and 100 in one run, and in two."""
    long = {"schedule": {"samples": 960, "shape": "cosine"}}
    run(config(long), tmp_path / "whole")
    run(config(long | {"run": {"stop_after_steps": 20}}), tmp_path / "halves")
    events = run(config(long), tmp_path / "halves")
    assert sum(isinstance(e, Stepped) for e in events) == 100
    whole, halves = (newest(str(tmp_path / name / "checkpoints"))[0] for name in ("whole", "halves"))
    assert whole is not None
    assert halves is not None
    assert sorted(whole.tensors) == sorted(halves.tensors)
    assert len(list(whole.tensors)) == 2 + 2 * 3
    assert all(torch.equal(whole.tensors.whole(name), halves.tensors.whole(name)) for name in whole.tensors)


@pytest.mark.parametrize(
    ("over", "knobs", "setting", "words"),
    [
        ({}, {"shift": 1.0}, "run.dir", "other data of as many samples"),
        ({"run": {"seed": 3}}, {}, "run.seed", "begun with 0"),
        ({"optim": {"name": "sgd", "lr": 0.1}}, {}, "optim.name", "begun with adamw"),
    ],
)
def test_another_run_is_refused(tmp_path: Path, over: dict[str, Any], knobs: dict[str, Any], setting: str, words: str) -> None:
    run(config({"run": {"stop_after_steps": 4}}), tmp_path)
    with pytest.raises(UserError, match=words) as error:
        run(config(over, **knobs), tmp_path)
    assert error.value.setting == setting


def test_what_changed_is_said_and_what_is_free_is_not(tmp_path: Path) -> None:
    run(config({"run": {"stop_after_steps": 4}}), tmp_path)
    over = {
        "optim": {"name": "adamw", "lr": 0.04},
        "watch": {"wandb": "off", "every_steps": 5},
        "batch": {"reference": 8, "total": 16},
    }
    events = run(config(over, grow=1.0), tmp_path)
    changed = [e.message for e in events if isinstance(e, Noticed) and e.code == "changed"]
    assert [message.partition(" since")[0] for message in changed] == ["optim.lr: 0.02 -> 0.04", "recipe.grow: None -> 1.0"]
    resumed = next(e.message for e in events if isinstance(e, Noticed) and e.code == "resumed")
    assert "global batch 8 -> 16, lr 0.02 -> 0.04" in resumed


def test_a_resume_says_what_another_rule_derives(tmp_path: Path) -> None:
    """As where `auto` of a later version takes another rule: the lr is the same here, and the weight decay is not."""
    over: dict[str, Any] = {"batch": {"reference": 8, "total": 32}, "optim": {"name": "adamw", "lr": 0.02, "weight_decay": 0.01}}
    run(config(over | {"scaling": {"rule": "sqrt"}, "run": {"stop_after_steps": 1}}), tmp_path)
    events = run(config(over | {"scaling": {"rule": "auto"}}), tmp_path)
    resumed = next(e.message for e in events if isinstance(e, Noticed) and e.code == "resumed")
    assert resumed.endswith("global batch 32, lr 0.04, weight_decay 0.01 -> 0.02")


def test_a_run_that_is_complete_says_what_to_do_for_more(tmp_path: Path) -> None:
    run(config({}), tmp_path)
    events = run(config({}), tmp_path)
    resumed = [e.message for e in events if isinstance(e, Noticed) and e.code == "resumed"]
    assert len(resumed) == 1
    assert " 1 rank, global batch 8, lr 0.02" in resumed[0]
    assert resumed[0].endswith("nothing is left to train: raise schedule.samples, or give another run.dir to begin a new run")
    assert not [e for e in events if isinstance(e, Stepped)]
