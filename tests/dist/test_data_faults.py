"""Bad samples are left out by name and counted, lost data workers are replaced, and the loss stays a sum over a count."""

import json
from collections import Counter
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.checkpoint.train_state import State
from harness.config.errors import UserError
from harness.config.loader import decode
from harness.config.schema import RecipeConfig
from harness.data.feed import Feed
from harness.data.sample_order import Chunk, Order, StepShards, derive
from harness.data.seeding import ORDER
from harness.data.workers import Fetched, Worker
from harness.plan.plan import plan
from harness.plan.world import World
from harness.recipes.base import load_recipe
from harness.telemetry.events import Ended, Evaluated, Event, Noticed, Stepped, Windowed
from harness.training.bad_samples import take_up
from harness.training.loop import train
from tests.support.processes import ROOT, run_ranks

SIZE, BATCH, EPOCHS = 48, 8, 2
RECIPE = f"{ROOT}/tests/dist/workers/broken.py:Broken"


def tree(log: Path, *, data: Any = None, guard: Any = None, **knobs: Any) -> dict[str, Any]:
    """A run file: two epochs of 48 samples in steps of 8, four a pass."""
    return {
        "recipe": {"use": RECIPE, "log": str(log), "size": SIZE, **knobs},
        "batch": {"reference": BATCH, "total": BATCH, "micro": 2},
        "optim": {"lr": 0.01},
        "scaling": {"warmup_samples": 0},
        "schedule": {"samples": SIZE * EPOCHS},
        "eval": {"every_samples": SIZE},
        "watch": {"wandb": "off", "every_steps": 3},
        "data": data or {},
        "guard": guard or {},
    }


def told(log: Path, **options: Any) -> list[Event]:
    """All that a run in this process tells."""
    c = decode(tree(log, **options))
    return list(train(c, plan(c, World(1, device="cpu")), cpu=True))


def ids(log: Path) -> Counter[int]:
    """How often each sample was trained on, over all ranks; padding passes included."""
    return Counter(int(i) for f in log.glob("*.ids") for i in f.read_text().split())


def notices(events: list[Event], code: str) -> list[str]:
    """What was said under a code."""
    return [e.message for e in events if isinstance(e, Noticed) and e.code == code]


ALL = Counter(dict.fromkeys(range(SIZE), EPOCHS))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_sample_is_left_out_by_name_counted_and_changes_no_other(tmp_path: Path, workers: int) -> None:
    """Two of training and one of validation."""
    events = told(tmp_path, workers=workers, raises=[7, 30], raises_valid=[5])
    assert ids(tmp_path) == Counter({i: n for i, n in ALL.items() if i not in (7, 30)})
    said = " ".join(notices(events, "bad_samples"))
    assert "training samples that cannot be read are left out: " in said
    for part in (
        "7 (ValueError: sample 7 is broken)",
        "30 (ValueError: sample 30 is broken)",
        "validation samples",
        "5 (ValueError",
    ):
        assert said.count(part) == 1, "each is named once, though it comes by in every epoch"
    steps = [e.metrics for e in events if isinstance(e, Stepped)]
    assert sum(s["batch/items"] for s in steps) == SIZE * EPOCHS - 4
    assert sum(s["batch/samples"] for s in steps) == SIZE * EPOCHS
    assert [e.metrics["reliability/bad_samples"] for e in events if isinstance(e, Windowed)][-1] == 3
    ends = [e for e in events if isinstance(e, Ended)]
    assert [e.reason for e in ends] == ["complete"]


def test_where_a_whole_pass_is_bad_the_others_of_its_step_train_as_ever(tmp_path: Path) -> None:
    """Of the second step's first pass: a batch of no weight stands in, and the passes after it are not in eval mode."""
    pair = Order(SIZE, derive(0, ORDER)).take(BATCH, BATCH + 2).tolist()
    events = told(tmp_path, raises=pair)
    assert [e.metrics["batch/items"] for e in events if isinstance(e, Stepped)][1] == BATCH - 2
    passes = [[int(i) for i in line.split()] for line in (tmp_path / "0.ids").read_text().splitlines()]
    assert sum(map(len, passes)) == (SIZE - 2) * EPOCHS
    assert len(passes) == SIZE * EPOCHS // 2 - 1, "in the second epoch they are not together"


@pytest.mark.parametrize("workers", [0, 1])
def test_past_the_budget_the_run_stops_and_says_which(tmp_path: Path, workers: int) -> None:
    end = told(tmp_path, workers=workers, raises=[1, 2, 3], guard={"bad_samples": 2})[-1]
    assert isinstance(end, Ended)
    assert end.reason == "guard"
    assert "3 samples cannot be read, more than guard.bad_samples 2: " in end.message
    assert all(str(i) in end.message.partition("2: ")[2] for i in (1, 2, 3))


def test_a_run_without_one_sample_to_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none of the first samples .* can be read \(ValueError: sample"):
        told(tmp_path, raises=list(range(SIZE)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mistake_of_the_user_in_the_data_is_said_as_such(tmp_path: Path, workers: int) -> None:
    with pytest.raises(UserError) as caught:
        told(tmp_path, workers=workers, user_error=20)
    assert str(caught.value) == "recipe.root: the disk is not mounted; mount it"


def test_a_data_worker_that_was_killed_is_replaced_and_nothing_is_lost(tmp_path: Path) -> None:
    events = told(tmp_path, workers=2, kills_once=11)
    (said,) = notices(events, "data_worker")
    assert "a data worker was killed by signal 9 at samples " in said
    assert "11" in said.partition("at samples ")[2]
    assert notices(events, "bad_samples") == []
    assert ids(tmp_path) == ALL


@pytest.fixture
def only_the_hung_are_late(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """However slow the machine is: a worker's time begins when it stands at the sample that hangs it."""
    take, hung = Worker.take, tmp_path / "hung"

    def patient(self: Worker, timeout_s: float) -> Fetched:
        here = str(self.process.pid)
        while not wait([self.pipe, self.process.sentinel], 0.01) and not (hung.exists() and hung.read_text() == here):
            pass
        return take(self, timeout_s)

    monkeypatch.setattr(Worker, "take", patient)


@pytest.mark.parametrize(
    ("knob", "how"),
    [({"kills": 11}, "its data worker was killed by signal 9"), ({"hangs": 11}, "its data worker gave nothing for 0.5 s")],
)
@pytest.mark.usefixtures("only_the_hung_are_late")
def test_a_sample_that_kills_or_hangs_its_worker_is_left_out(tmp_path: Path, knob: dict[str, int], how: str) -> None:
    events = told(tmp_path, workers=2, data={"timeout_s": 0.5}, **knob)
    assert f"11 ({how})" in " ".join(notices(events, "bad_samples"))
    assert len(notices(events, "data_worker")) == 1, "the second time it is known"
    assert ids(tmp_path) == Counter({i: n for i, n in ALL.items() if i != 11})
    assert sum(e.metrics["batch/items"] for e in events if isinstance(e, Stepped)) == (SIZE - 1) * EPOCHS


def test_too_many_lost_workers_stop_the_run_in_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.restarts: is 0, and a data worker was killed by signal 9 at samples .*11"):
        told(tmp_path, workers=1, kills=11, data={"restarts": 0})


def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    runs = []
    for workers in (0, 1, 3):
        folder = tmp_path / str(workers)
        folder.mkdir()
        events = told(folder, workers=workers, raises=[7])
        runs.append(
            [e.metrics for e in events if isinstance(e, Stepped)]
            + [e.metrics["eval/loss"] for e in events if isinstance(e, Evaluated)]
        )
    assert runs[0] == runs[1] == runs[2]


def test_what_a_run_knows_to_be_bad_when_it_resumes_is_not_read_again(tmp_path: Path) -> None:
    """One that kills or hangs its worker would cost data.restarts at each resume."""
    recipe: Any = load_recipe(RecipeConfig(use=RECIPE, knobs={"log": str(tmp_path), "raises": [3], "raises_valid": [5]}))
    options: dict[str, Any] = {"order": None, "device": torch.device("cpu"), "dtype": torch.float32}
    train_feed, valid_feed = (Feed(recipe.data(split), **options) for split in ("train", "valid"))
    take_up(State(bad_samples=(3,), bad_valid=(5,)), train_feed, valid_feed)
    for feed in (train_feed, valid_feed):
        (found,) = feed.few(StepShards(0, BATCH, (Chunk(0, BATCH),)))
        assert (found.chunk.count, feed.troubles) == (BATCH - 1, [])


def test_two_ranks_agree_on_what_is_bad_and_a_resumed_run_still_knows(tmp_path: Path) -> None:
    """Every pass holds two samples, so that some pass of one rank is all bad: an earlier batch of no weight stands in."""
    run = tree(tmp_path, workers=1, raises=[3, 4, 12, 13, 14, 15, 40]) | {
        "run": {"dir": str(tmp_path / "run"), "stop_after_steps": SIZE // BATCH},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(run))
    run_ranks(2, ["harness", str(tmp_path / "run.yaml")], tmp_path)
    first = ids(tmp_path)
    run["run"]["stop_after_steps"] = None
    (tmp_path / "run.yaml").write_text(json.dumps(run))
    run_ranks(2, ["harness", str(tmp_path / "run.yaml")], tmp_path)
    journal = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    said = [line["message"] for line in journal if line["event"] == "notice" and line["code"] == "bad_samples"]
    for number in (3, 4, 12, 13, 14, 15, 40):
        assert f"{number} (ValueError: sample {number} is broken)" in " ".join(said) or f" {number}" in " ".join(said)
    steps = [line for line in journal if line["event"] == "step"]
    assert [s["samples"] for s in steps] == list(range(BATCH, SIZE * EPOCHS + 1, BATCH))
    assert sum(s["batch/items"] for s in steps) == (SIZE - 7) * EPOCHS
    assert [w for w in journal if w["event"] == "window"][-1]["reliability/bad_samples"] == 7
    good = {i for i in range(SIZE) if i not in (3, 4, 12, 13, 14, 15, 40)}
    assert set(first) == good
    assert len(said) >= 1
    before = [line["step"] for line in journal if line.get("code") == "bad_samples"]
    assert max(before) <= SIZE // BATCH, "after the resume none is read again"
