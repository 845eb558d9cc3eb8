"""What stands in the place of a run folder's files: a pipe is not waited for, a device not read for ever, and both are told."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.analysis.journal_reader import story_of
from harness.analysis.journal_tail import began, last_window, windows
from harness.analysis.measured_speeds import speeds_from
from harness.config.errors import UserError
from harness.config.loader import load
from harness.config.plain_file import open_plain
from launch.cli import main
from launch.lab.told_plan import told_plan
from launch.options.evidence_option import find
from launch.processes.run_folder import warned

KINDS: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": Path.mkdir,
    "loop": lambda path: path.symlink_to(path),
}
PLAN: dict[str, Any] = {
    "rule": "none", "global_batch": 16, "micro_batch": 16, "total_samples": 128, "warmup_samples": 0, "dataset_samples": None,
    "lr": 0.05, "weight_decay": 0.0, "betas": None, "momentum": 0.9, "stages": [{"start": 0}],
    "schedule": {"shape": "constant", "horizon": 128, "milestones": [], "every": 0, "gamma": 0.1, "decay_fraction": 0.2,
                 "final_fraction": 0.0},
}  # fmt: skip


@pytest.fixture(params=KINDS)
def odd(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A run folder whose files are all of one such kind."""
    for name in ("events.jsonl", "plan.json", "run.yaml", "evidence.json"):
        KINDS[request.param](tmp_path / name)
    return tmp_path


def test_no_reader_of_a_run_folder_waits_or_reads_for_ever(odd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = odd / "events.jsonl"
    assert last_window(journal) == {}
    assert warned(odd) == frozenset()
    for read in (lambda: story_of("run", journal), lambda: windows(journal), lambda: began(journal)):
        with pytest.raises(OSError, match=r"Not a plain file|Is a directory|symbolic links"):
            read()
    for told in (lambda: speeds_from(odd), lambda: told_plan(odd), lambda: find(odd), lambda: load(odd / "run.yaml")):
        with pytest.raises(UserError):
            told()
    for command in (["report", str(odd)], ["export", str(odd), "--out", str(odd / "x.safetensors")], ["branch", str(odd)]):
        assert main(command) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_link_to_a_plain_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("text")
    (tmp_path / "here").symlink_to("there")
    with open_plain(tmp_path / "here") as file:
        assert file.read() == b"text"


@pytest.mark.parametrize(
    "change",
    [{"global_batch": 0}, {"global_batch": "16"}, {"global_batch": 10**30}, {"lr": -1}, {"rule": None}, {"schedule": {}},
     {"schedule": PLAN["schedule"] | {"shape": "square"}}, {"betas": [0.9]}, {"stages": 5}],
)  # fmt: skip
def test_a_plan_that_no_run_wrote_is_told_to_who_branches_from_it(change: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(PLAN))
    assert told_plan(tmp_path)["lr"] == 0.05
    (tmp_path / "plan.json").write_text(json.dumps(PLAN | change))
    with pytest.raises(UserError, match="give the folder that a run wrote"):
        told_plan(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "5", '{"warnings": 1}', "[" * 100_000])
def test_nor_does_any_text_in_its_place_end_a_start_or_a_branch_by_a_traceback(text: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    assert warned(tmp_path) == frozenset()
    with pytest.raises(UserError):
        told_plan(tmp_path)
    with pytest.raises(UserError):
        speeds_from(tmp_path)
