"""A checkpoint whose digests are right and whose state makes no sense is refused by name, and the one before it is taken."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from harness.checkpoint.manifest import EVALUATED, MANIFEST, STATE, digest, encode
from harness.checkpoint.state_check import check_state
from harness.checkpoint.train_state import State
from harness.config.errors import UserError
from harness.telemetry.events import Noticed
from harness.training.guard import REMEMBERED, recall
from tests.dist.test_saving import codes, config, run

NONSENSE: list[dict[str, Any]] = [
    {"growth": 10**9}, {"growth": 0}, {"growth_lr": -1.0}, {"growth_lr": float("inf")}, {"micro": 0}, {"micro": -4}, {"step": -1},
    {"samples": 2**60}, {"samples": 1.5}, {"samples": "8"}, {"scheduled": float("nan")}, {"lost_s": -1.0}, {"restarts": -2},
    {"plateau": {"factor": 7.0}}, {"plateau": None}, {"guard": {"brake": {"factor": 0.0}}}, {"guard": {"gaps": [[5, 5]]}},
    {"guard": {"gaps": [[9, 3]]}}, {"guard": {"rollbacks": -1}}, {"losses": {"memory": [float("nan")]}},
    {"losses": {"memory": "x"}}, {"noise": {"square": float("inf")}}, {"bad_samples": [-1]},
    {"began": float("nan")}, {"last": [1]}, {"step": 10**7},
]  # fmt: skip


def sealed(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the state of a checkpoint, and seal it again with right digests."""
    document = json.loads((folder / STATE).read_text())
    change(document)
    (folder / STATE).write_text(json.dumps(document))
    (folder / EVALUATED).unlink(missing_ok=True)  # the state after the evaluation, which would be taken in its place
    seal(folder)


def seal(folder: Path) -> None:
    files = {p.name: digest([p.read_bytes()]) for p in folder.iterdir() if p.name not in (MANIFEST, EVALUATED)}
    (folder / MANIFEST).write_bytes(encode(files))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The folder of a run with two checkpoints."""
    run(config({"checkpoint": {"every_samples": 80}, "run": {"stop_after_steps": 20}}), tmp_path / "run")
    assert len(list((tmp_path / "run" / "checkpoints").glob("samples-*"))) == 2
    return tmp_path / "run"


@pytest.mark.parametrize("nonsense", NONSENSE, ids=str)
def test_a_state_out_of_its_bounds_is_not_taken(nonsense: dict[str, Any]) -> None:
    if nonsense != {"growth": 10**9}:  # possible at some batch: held against the run file below
        with pytest.raises(ValueError, match=r"."):
            check_state(State.from_json(State().to_json() | {"samples": 100, "step": 10} | nonsense))
    good = State(step=10, samples=100)
    assert check_state(State.from_json(json.loads(json.dumps(good.to_json())))) == good


def test_nonsense_behind_a_good_seal_costs_that_checkpoint_alone(saved: Path) -> None:
    newest = saved / "checkpoints" / "samples-000000000160"
    sealed(newest, lambda d: d["state"].update(micro=0))
    events = run(config({"checkpoint": {"every_samples": 80}, "run": {"stop_after_steps": 1}}), saved)
    assert codes(events)[:2] == ["damaged_checkpoint", "resumed"]
    notice = next(e for e in events if isinstance(e, Noticed))
    assert "samples-000000000160: ValueError: its state is impossible: micro" in notice.message
    assert notice.samples == 80


def test_a_batch_that_grew_past_the_run_file_and_weights_that_are_no_numbers_are_refused(saved: Path) -> None:
    newest = saved / "checkpoints" / "samples-000000000160"
    sealed(newest, lambda d: d["state"].update(growth=10**9))
    with pytest.raises(UserError, match=r"batch\.most: is unset, but the checkpoint trains at 1,000,000,000 times"):
        run(config({}), saved)
    sealed(newest, lambda d: d["state"].update(growth=1))
    file = next(newest.glob("tensors-*"))
    data = bytearray(file.read_bytes())
    begin = 8 + int.from_bytes(data[:8], "little")
    data[begin:] = b"\xff" * (len(data) - begin)  # a NaN in every type
    file.write_bytes(data)
    seal(newest)
    with pytest.raises(UserError, match=r"holds weights that are not finite \(.*; remove that checkpoint"):
        run(config({}), saved)


@pytest.mark.parametrize("text", ["", "null", "{", "[]", '{"gaps": 5}', '{"interventions": -3, "rollbacks": -1}', "[" * 9000])
def test_an_odd_memory_of_the_guard_is_said_and_does_not_end_the_run(text: str, tmp_path: Path) -> None:
    (tmp_path / REMEMBERED).write_text(text)
    state, problem = recall(tmp_path, State(step=3, samples=30))
    assert state == State(step=3, samples=30)
    assert REMEMBERED in problem
    assert recall(tmp_path / "none", state) == (state, "")


def test_what_the_guard_did_comes_back(tmp_path: Path) -> None:
    did = {"interventions": 2, "gaps": [[3, 5]], "suspect": [1, 2]}
    (tmp_path / REMEMBERED).write_text(json.dumps(asdict(State().guard) | did))
    state, problem = recall(tmp_path, State())
    assert problem == ""
    assert (state.guard.interventions, state.guard.gaps, state.guard.suspect) == (2, ((3, 5),), (1, 2))
