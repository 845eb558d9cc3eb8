"""Whose code runs: what a run folder names is used only where this user made it, or gives --trust; and that is said before."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.config.loader import load
from harness.config.schema import Config
from harness.supervision import folder_seal
from launch.cli import main
from launch.options.commands import COMMANDS
from tests.support.processes import ROOT, environ

RECIPE = """
from dataclasses import dataclass
from pathlib import Path
from harness.recipes.digits import Digits

Path(__file__).with_name("imported").touch()

@dataclass(frozen=True)
class Mine(Digits):
    pass
"""
RUN_FILE = """
recipe: {use: mine.py:Mine, width: 4}
batch: {reference: 32, total: 32}
optim: {lr: 0.01}
scaling: {rule: none}
schedule: {samples: 640}
watch: {wandb: "off"}
run: {dir: run, stop_after_steps: 4}
"""
MORE = {
    "launch": ["--gpus", "0", "--dry-run"],
    "sweep": ["--batches", "32"],
    "bench": ["--gpus", "0"],
    "export": ["--out", "exported"],
    "verify": ["--gpus", "0"],
    "samples": ["--step", "1"],
    "find-batch": ["--gpus", "0"],
    "plan": ["--gpus", "1"],
}
NO_CODE = {"fit", "configs", "demo", "doctor", "report", "top", "schema", "dashboard", "tokenize", "completion", "init"}
"""Commands that run nothing of a run folder; init reads the recipe that it is given."""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, its run, and a copy of the run's folder as another would have it: without what this user's key has sealed."""
    here = tmp_path_factory.mktemp("trust")
    (here / "mine.py").write_text(RECIPE)
    (here / "run.yaml").write_text(RUN_FILE)
    env = environ() | {"XDG_STATE_HOME": str(here / "state")}
    argv = [sys.executable, "-m", "launch", "train", "run.yaml"]
    done = subprocess.run(argv, cwd=here, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "names" not in done.stderr, "the user's own run file is a script"
    shutil.copytree(here / "run", here / "theirs")
    (here / "theirs" / "origin").unlink()
    return here


@pytest.fixture
def at(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, as the working directory, with nothing imported yet."""
    monkeypatch.chdir(here)
    monkeypatch.setenv("XDG_STATE_HOME", str(here / "state"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (here / "imported").unlink(missing_ok=True)
    return here


def argv(command: str, folder: Path, *more: str) -> list[str]:
    """A command on a run folder."""
    target = folder if command in ("branch", "export", "samples") else folder / "run.yaml"
    return [command, str(target), *MORE.get(command, []), *more]


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - NO_CODE))
def test_no_command_runs_code_that_a_stranger_s_folder_names(command: str, at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(at.rglob("*"))
    assert main(argv(command, at / "theirs")) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert f"recipe.use: {at}/theirs/run.yaml names {at}/mine.py:Mine, and has no seal that shows you made that folder" in line
    assert "--trust" in line
    assert sorted(at.rglob("*")) == before, "nothing is imported, and nothing left behind"


@pytest.mark.parametrize(("folder", "flags"), [("run", []), ("theirs", ["--trust"])])
def test_code_of_one_s_own_folder_or_of_a_trusted_one_runs_and_is_named_before(
    folder: str, flags: list[str], at: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(argv("plan", at / folder, "--recipe.samples", "null", "--schedule.samples", "null", "--schedule.epochs", "2", *flags))
        == 0
    )
    first = capsys.readouterr().err.splitlines()[0]
    assert first == f"note: {at}/{folder}/run.yaml names {at}/mine.py:Mine, which is run now"
    assert (at / "imported").exists()


def test_what_a_flag_names_is_the_user_s_own_and_built_in_recipes_run_no_foreign_code(
    at: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv("plan", at / "theirs", "--recipe.use", "digits")) == 0
    text = (at / "theirs" / "run.yaml").read_text()
    (at / "built").mkdir()
    (at / "built" / "plan.json").write_text("{}")
    (at / "built" / "run.yaml").write_text(text.replace(f"{at}/mine.py:Mine", "digits"))
    assert main(argv("plan", at / "built")) == 0
    assert not capsys.readouterr().err
    assert not (at / "imported").exists()


@pytest.mark.parametrize(
    ("setting", "line", "value"),
    [
        ("checkpoint.dir", "  dir: null", "s3://theirs/run"),
        ("scaling.rule", "  rule: none", "/x/rule.py:steep"),
        ("watch.use", "  use: []", "/x/spy.py:Spy"),
    ],
)
def test_so_it_is_with_all_else_that_a_folder_may_name(
    setting: str, line: str, value: str, at: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also in a folder of one's own, in which somebody has changed the run file."""
    section, name = setting.split(".")
    shutil.copytree(at / "run", tmp_path / "run")
    path = tmp_path / "run" / "run.yaml"
    text = f"[{value}]" if setting == "watch.use" else value
    head, _, tail = path.read_text().partition(f"\n{section}:\n")
    assert f"\n{line}" in f"\n{tail}"
    path.write_text(f"{head}\n{section}:\n" + tail.replace(line, f"  {name}: {text}", 1))
    commands = ["train", "branch"] + ["export"] * (setting == "checkpoint.dir")
    for command in commands:
        more = ["--out", str(tmp_path / "w.safetensors")] if command == "export" else []
        assert main(argv(command, tmp_path / "run", *more)) == 2
        assert f"error: {setting}: {path} names {value}, and has no seal" in capsys.readouterr().err


def test_weights_alone_need_no_code_and_no_flag(at: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(at / "theirs"), "--out", str(tmp_path / "w.safetensors")]) == 0
    assert not capsys.readouterr().err
    assert not (at / "imported").exists()


def test_a_seal_holds_for_one_key_and_one_name(at: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = f"{at}/mine.py:Mine"
    assert folder_seal.is_sealed(at / "run", "recipe.use", name)
    assert not folder_seal.is_sealed(at / "run", "scaling.rule", name)
    assert not folder_seal.is_sealed(at / "run", "recipe.use", f"{at}/other.py:Mine")
    assert (at / "state" / "widebatch").stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert not folder_seal.is_sealed(at / "run", "recipe.use", name), "of another user's key"


def test_where_no_home_keeps_a_key_a_run_goes_on_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config: Config = load(ROOT / "configs" / "digits.yaml", {"watch.use": "[x.py:Y]"})
    for home in ("/dev/null", "/proc/none"):
        monkeypatch.setenv("XDG_STATE_HOME", home)
        folder_seal.seal(tmp_path, config)
        assert not list(tmp_path.iterdir())
