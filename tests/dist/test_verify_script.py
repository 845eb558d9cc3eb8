"""verify -- COMMAND on foreign scripts: every planted bug is found and named, and clean scripts pass."""

import json
from pathlib import Path

import msgspec
import pytest

from harness.analysis.script_findings import StepSeen, judge_script
from harness.config.errors import UserError
from launch.cli import main
from launch.lab.foreign_script import script_of
from tests.support.processes import ROOT, run_ranks

SCRIPT = ROOT / "tests" / "dist" / "workers" / "planted_script.py"
BUGS = {
    "own weights": ("weights", "begin from different weights"),
    "unsynced": ("gradients", "with its own gradients, not averaged"),
    "summed": ("gradients", "added up over the 2 ranks, not averaged"),
    "undivided": ("loss", "not divided by the 2 passes of a step"),
    "twice": ("loss", "divided by the 2 passes of a step twice"),
    "by ranks": ("loss", "divided by the 2 "),
    "unequal": ("items", "are averaged as equals"),
    "own rate": ("rate", "the ranks' rates differ"),
    "same samples": ("samples", "all ranks read the same samples"),
    "own shuffle": ("samples", "each shuffles on its own"),
    "own buffers": ("buffers", "the ranks' buffers differ"),
    "same dropout": ("dropout", "drop the same units"),
}
CLEAN = ("clean", "weighted", "fast schedule")

Seen = dict[str, list[list[StepSeen]]]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """What two ranks, and one alone, did in each variant of the script; the variants one after another in the same processes."""
    folder = tmp_path_factory.mktemp("planted")
    found: Seen = {}
    for ranks in (2, 1):
        names = [*BUGS, *CLEAN]
        run_ranks(ranks, ["tests.dist.workers.probed", str(folder / str(ranks)), str(SCRIPT), *names], ROOT)
        for name in names:
            files = [folder / str(ranks) / f"{name}-{rank}.json" for rank in range(ranks)]
            key = name if ranks == 2 else f"{name} alone"
            found[key] = [msgspec.convert(json.loads(file.read_text()), list[StepSeen]) for file in files]
    return found


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_named(seen: Seen, bug: str) -> None:
    found = judge_script(seen[bug], seen[f"{bug} alone"][0])
    what, text = BUGS[bug]
    told = {one.what: one.text for one in found if one.verdict == "differs"}
    assert text in told.get(what, ""), found


@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_script_passes(seen: Seen, name: str) -> None:
    found = judge_script(seen[name], seen[f"{name} alone"][0])
    assert [one for one in found if one.verdict == "differs"] == []
    notes = [one.text for one in found if one.verdict == "note"]
    assert ["the scheduler steps 2 times a step" in note for note in notes] == [True] * (name == "fast schedule")


def test_the_command_runs_a_script_and_says_so_by_its_status(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--steps", "2", "--", "accelerate", "launch", "--num_processes", "8", str(SCRIPT), "undivided"]) == 1
    said = capfd.readouterr().out
    assert "differs loss       the loss is not divided by the 2 passes of a step" in said
    assert "verified on 2 ranks, 2 steps: differs in loss" in said


def test_the_script_is_found_in_any_launcher_s_command() -> None:
    assert script_of(["torchrun", "--nproc_per_node=2", str(SCRIPT), "--lr", "1"]) == (str(SCRIPT), ["--lr", "1"])
    with pytest.raises(UserError, match="in which no script is found"):
        script_of(["python", "-m", "nothing"])
