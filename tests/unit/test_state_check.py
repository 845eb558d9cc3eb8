"""A checkpoint whose digests are right and whose state makes no sense is refused by name, and the one before it is taken."""

import json
import math
import struct
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
    {"began": float("nan")}, {"last": [1]}, {"step": 10**7}, {"step": 0}, {"began": 1e18}, {"began": -1e18}, {"scheduled": 1e300},
    {"trained_s": 1e300}, {"growth_lr": 1e308}, {"growth_lr": 1e-320}, {"best_at": 10**9}, {"nonfinite_steps": 10**9},
    {"skipped_steps": 10**9}, {"empty_steps": -5}, {"empty_steps": 10**9}, {"noise_by": "\x1b]0;x"}, {"lineage": "x" * 10**6},
    {"lineage": "a\nb"}, {"losses": {"memory": [1.0] * 10**5}}, {"guard": {"gaps": [[300, 400], [170, 200]], "rollbacks": 2}},
    {"guard": {"gaps": [[n, n + 1] for n in range(10**5)], "rollbacks": 2, "interventions": 2}}, {"guard": {"rollbacks": 3}},
    {"guard": {"interventions": 2**60}}, {"best": {f"eval/{n}": 1.0 for n in range(10**5)}}, {"evaluation_due": "x"},
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


@pytest.mark.parametrize("nonsense", NONSENSE, ids=lambda nonsense: str(nonsense)[:60])
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


@pytest.mark.parametrize("samples", [80, 481, 2**53])
def test_a_state_of_another_place_costs_that_checkpoint_alone(samples: int, saved: Path) -> None:
    sealed(saved / "checkpoints" / "samples-000000000160", lambda d: d["state"].update(samples=samples))
    events = run(config({"run": {"stop_after_steps": 1}}), saved)
    assert codes(events)[:2] == ["damaged_checkpoint", "resumed"]


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


def changed(folder: Path, change: Callable[[dict[str, Any], bytearray], Any]) -> None:
    """Change the header or the data of a checkpoint's tensors, and seal it again."""
    file = next(folder.glob("tensors-*"))
    data = file.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    tree, numbers = json.loads(data[8:begin]), bytearray(data[begin:])
    change(tree, numbers)
    text = json.dumps(tree).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + numbers)
    (folder / EVALUATED).unlink(missing_ok=True)
    seal(folder)


def filled(name: str, value: float) -> Callable[[dict[str, Any], bytearray], Any]:
    """All numbers of a tensor are this one."""

    def fill(tree: dict[str, Any], numbers: bytearray) -> None:
        first, last = tree[f"0:{name}"]["data_offsets"]
        numbers[first:last] = struct.pack("<f", value) * ((last - first) // 4)

    return fill


def renamed(tree: dict[str, Any], _numbers: bytearray) -> None:
    """A moment of one of two weights goes by another name."""
    tree["0:optimizer/weight/other"] = tree.pop("0:optimizer/weight/exp_avg")
    shapes = tree["__metadata__"]["shapes"]
    tree["__metadata__"]["shapes"] = shapes.replace('optimizer/weight/exp_avg"', 'optimizer/weight/other"')


MOMENTS: list[tuple[Callable[[dict[str, Any], bytearray], Any], str]] = [
    (filled("optimizer/weight/exp_avg", math.nan), "holds optimizer/weight/exp_avg that is not finite"),
    (filled("optimizer/weight/exp_avg_sq", -1.0), "holds optimizer/weight/exp_avg_sq that is negative"),
    (filled("optimizer/weight/step", math.inf), "holds optimizer/weight/step that is not finite"),
    (filled("optimizer/weight/step", -7.0), "holds optimizer/weight/step that is negative"),
    (lambda tree, _: tree["0:model/weight"].update(dtype="I32"), "weight is torch.int32 there, torch.float32 here"),
    (renamed, "state of weight has no exp_avg"),
]


@pytest.mark.parametrize(("change", "told"), MOMENTS, ids=[told for _, told in MOMENTS])
def test_numbers_that_would_ruin_the_weights_are_refused(
    change: Callable[[dict[str, Any], bytearray], Any], told: str, saved: Path
) -> None:
    changed(saved / "checkpoints" / "samples-000000000160", change)
    with pytest.raises(UserError) as caught:
        run(config({}), saved)
    assert told in str(caught.value)


def test_a_moment_of_whole_numbers_costs_that_checkpoint_alone(saved: Path) -> None:
    newest = saved / "checkpoints" / "samples-000000000160"
    changed(newest, lambda tree, _: tree["0:optimizer/weight/exp_avg"].update(dtype="I32"))
    events = run(config({"run": {"stop_after_steps": 1}}), saved)
    assert codes(events)[:2] == ["damaged_checkpoint", "resumed"]


FACTS: list[dict[str, Any]] = [
    {"lr": "x"}, {"lr": None}, {"dataset": "40"}, {"world_size": "\x1b[31m"}, {"global_batch": [1]}, {"warned": [1]},
]  # fmt: skip


@pytest.mark.parametrize("fact", FACTS, ids=str)
def test_facts_of_another_type_are_refused(fact: dict[str, Any], saved: Path) -> None:
    sealed(saved / "checkpoints" / "samples-000000000160", lambda d: d["about"].update(fact))
    with pytest.raises(UserError, match=r"samples-000000000160 in .* was written by another version or is damaged .*; remove that"):
        run(config({}), saved)


@pytest.mark.parametrize("text", ["", "null", "{", "[]", '{"gaps": 5}', '{"interventions": -3, "rollbacks": -1}', "[" * 9000])
def test_an_odd_memory_of_the_guard_is_said_and_does_not_end_the_run(text: str, tmp_path: Path) -> None:
    (tmp_path / REMEMBERED).write_text(text)
    state, problem = recall(tmp_path, State(step=3, samples=30))
    assert state == State(step=3, samples=30)
    assert REMEMBERED in problem
    assert recall(tmp_path / "none", state) == (state, "")


def test_what_the_guard_did_comes_back(tmp_path: Path) -> None:
    did = {"interventions": 2, "rollbacks": 1, "gaps": [[3, 5]], "suspect": [1, 2]}
    (tmp_path / REMEMBERED).write_text(json.dumps(asdict(State().guard) | did))
    state, problem = recall(tmp_path, State())
    assert problem == ""
    assert (state.guard.interventions, state.guard.gaps, state.guard.suspect) == (2, ((3, 5),), (1, 2))
