"""verify -- COMMAND on foreign scripts of four styles: every planted bug is found and named, and clean scripts pass."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from harness.analysis.equivalence import Finding
from harness.analysis.script_findings import PassSeen, StepSeen, judge_script
from harness.config.errors import UserError
from launch.cli import main
from launch.lab.foreign_script import script_of
from tests.support.planted_scripts import BUGS, CLEAN, differing, found_in
from tests.support.planted_scripts import script_of as planted_in

SCRIPT = planted_in("accelerate")
Found = dict[str, list[Finding]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Found]:
    """What is found, by style, as far as the tests have asked."""
    return {}


def _in(style: str, found: dict[str, Found], factory: pytest.TempPathFactory) -> Found:
    if style == "lightning" and find_spec("lightning") is None:
        pytest.skip("lightning is not installed")
    if style not in found:
        found[style] = found_in(style, factory.mktemp(style))
    return found[style]


@pytest.mark.parametrize("bug", BUGS)
@pytest.mark.parametrize("style", CLEAN)
def test_a_planted_bug_is_named(found: dict[str, Found], tmp_path_factory: pytest.TempPathFactory, style: str, bug: str) -> None:
    seen = _in(style, found, tmp_path_factory)[bug]
    what, text = BUGS[bug]
    assert text in differing(seen).get(what, ""), seen


@pytest.mark.parametrize(("style", "name"), [(style, name) for style, names in CLEAN.items() for name in names])
def test_a_clean_script_passes(found: dict[str, Found], tmp_path_factory: pytest.TempPathFactory, style: str, name: str) -> None:
    seen = _in(style, found, tmp_path_factory)[name]
    assert differing(seen) == {}
    notes = [one.text for one in seen if one.verdict == "note"]
    assert ["the scheduler steps 2 times a step" in note for note in notes] == [True] * (name == "fast schedule")


def test_where_single_ranks_gradients_are_not_seen_it_is_said_and_not_guessed() -> None:
    step = StepSeen(
        epoch=1, rates=(0.1,), gradient=(1.0, 2.0), own=(0.0, 0.0), weights=(3.0, 4.0), buffers="", random="", dropout=False,
        passes=(PassSeen(None, 0, ()),),
    )  # fmt: skip
    found = {one.what: one for one in judge_script([[step], [step]], [step])}
    assert found["gradients"].verdict == "note"
    assert "as FSDP keeps them" in found["gradients"].text
    assert differing(list(found.values())) == {}


REAL = """
import runpy, wandb
from pathlib import Path
wandb.init(project="real", id="the-real-run", dir=Path(__file__).parent)
try:
    runpy.run_path({script!r}, run_name="__main__")
finally:
    Path(__file__).with_name("weights.pt").write_text("those of a few steps")
"""


def test_the_command_runs_a_script_and_says_so_by_its_status(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What the script has of a real run stays as it is: its weights, its run in W&B."""
    script = tmp_path / "train.py"
    script.write_text(REAL.format(script=str(SCRIPT)))
    command = ["accelerate", "launch", "--num_processes", "8", str(script), "undivided", "--run"]
    assert main(["verify", "--steps", "2", "--", *command]) == 1
    assert list(tmp_path.iterdir()) == [script]
    said = capfd.readouterr().out
    assert "differs loss       the loss is not divided by the 3 passes of a step" in said
    assert "verified on 2 ranks, 2 steps: differs in loss" in said


def test_the_script_is_found_in_any_launcher_s_command() -> None:
    assert script_of(["torchrun", "--nproc_per_node=2", str(SCRIPT), "--lr", "1"]) == (str(SCRIPT), ["--lr", "1"])
    with pytest.raises(UserError, match="in which no script is found"):
        script_of(["python", "-m", "nothing"])
