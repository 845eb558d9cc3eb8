"""A first run file for a recipe: what is given, beside what may be, and never in the place of another file."""

from pathlib import Path

import pytest

from harness.config.loader import load
from launch.cli import main

TUNED = ["--batch.reference", "16", "--optim.lr", "3e-3", "--schedule.samples", "4k"]
MINE = """
from dataclasses import dataclass
from harness import Recipe
@dataclass(frozen=True)
class Mine(Recipe):
    width: int = 32
    name_: str = "a: b"
"""


def test_the_run_file_holds_what_is_given_and_shows_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MINE)
    assert main(["init", "mine.py:Mine", *TUNED, "--recipe.width", "8", "--precision", "bf16", "--run.seed", "3"]) == 0
    config = load(Path("mine.yaml"))
    assert config.recipe.knobs == {"width": 8}
    assert (config.batch.reference, config.batch.per_gpu, config.schedule.samples) == (16, 16, 4000)
    assert (config.optim.lr, config.precision, config.run.seed) == (3e-3, "bf16", 3)
    text = Path("mine.yaml").read_text()
    assert '  # name: "a: b"\n' in text
    assert "# Learning rate after the warm-up, as a factor of its peak." in text
    assert max(map(len, text.splitlines())) < 120


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["init", "digits"], "init: needs batch.reference and optim.lr and schedule.epochs; add what the recipe was tuned with"),
        (["init", "digts", *TUNED], "recipe.use: 'digts' is not a built-in recipe; did you mean digits?"),
        (["init", "digits", *TUNED, "--optim.lr", "-1"], "optim.lr: is -1"),
        (["init", "digits", *TUNED, "--out", "nowhere/run.yaml"], "--out: nowhere/run.yaml cannot be written"),
    ],
)
def test_a_mistake_is_told_and_leaves_no_file(
    argv: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_no_file_is_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("digits.yaml").write_text("mine")
    assert main(["init", "digits", *TUNED]) == 2
    assert "--out: digits.yaml is there" in capsys.readouterr().err
    assert Path("digits.yaml").read_text() == "mine"
