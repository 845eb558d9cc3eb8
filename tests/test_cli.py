"""The command line: plan and --help without torch, JSON for programs, mistakes in one line with status 2."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.cli import main
from tests.dist.processes import ROOT, environ, run_command

DIGITS = str(ROOT / "configs" / "digits.yaml")
KEYS = set(
    """
world_size nodes micro_batch accumulate global_batch reference_batch ratio rule lr reference_lr weight_decay momentum
betas
eps warmup_samples warmup_steps total_samples total_steps schedule backend precision warnings sources""".split()  # noqa: SIM905
)


def run_without(modules: list[str], argv: list[str], cwd: Path) -> str:
    """What a command prints that is to import none of `modules`."""
    code = (
        "import sys\nfrom launch.cli import main\n"
        f"try:\n    status = main({argv!r})\nexcept SystemExit as e:\n    status = e.code\n"
        f"assert not status, status\nloaded = [m for m in {modules!r} if m in sys.modules]\nassert not loaded, loaded"
    )
    return run_command([sys.executable, "-c", code], cwd)


@pytest.mark.parametrize(
    "argv", [["plan", DIGITS, "--gpus", "64"], ["--help"], ["plan", "--help"], ["train", "--help"], ["launch", "--help"]]
)
def test_planning_and_help_import_neither_torch_nor_any_other_heavy_package(argv: list[str]) -> None:
    assert run_without(["torch", "accelerate", "deepspeed", "wandb", "transformers", "numpy", "sklearn"], argv, ROOT)


def test_training_in_one_process_imports_neither_torch_s_compiler_nor_scikit_learn(tmp_path: Path) -> None:
    """A CPU second each: torch._dynamo, which torch's optimizers load, and scikit-learn, which brings the file of digits."""
    heavy = ["torch._dynamo", "torch.distributed.tensor", "sympy", "scipy", "deepspeed", "wandb", "transformers"]
    argv = ["train", DIGITS, "--run.stop_after_steps", "12", "--run.dir", "run", "--watch.wandb", "off"]
    assert "stop_after_steps after 12 steps" in run_without(heavy, argv, tmp_path)


def test_plan_prints_each_number_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", DIGITS, "--gpus", "8", "--nodes", "2"]) == 0
    out = capsys.readouterr().out
    assert "batch.per_gpu 32 x 8 ranks" in out
    assert "Goyal et al. 2017" in out
    assert "short_warmup" in out


def test_plan_json_is_one_object_with_the_outside_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", DIGITS, "--gpus", "8", "--json", "--lr-at", "0,29,100000"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert set(tree) >= KEYS
    assert tree["lr"] == pytest.approx(0.16)
    assert tree["global_batch"] == 256
    assert tree["betas"] is None
    assert {"code", "message"} == set(tree["warnings"][0])
    assert list(tree["lr_at"]) == ["0", "29", "100000"]
    assert tree["lr_at"]["0"] == 0.02
    assert tree["lr_at"]["29"] == pytest.approx(0.16, rel=1e-3)


def test_a_flag_goes_over_the_run_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", DIGITS, "--gpus=8", "--json", "--batch.total", "4096", "--optim.lr=0.3", "--scaling.rule", "sqrt"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["global_batch"] == 4096
    assert tree["reference_lr"] == 0.3
    assert tree["lr"] == pytest.approx(0.3 * 128**0.5)


def test_an_unstated_size_is_counted_by_importing_the_recipe_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", DIGITS, "--gpus", "2", "--json", "--recipe.samples", "null"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["dataset_samples"] == 1437
    assert "recipe.samples is not stated" in captured.err


MISTAKES = [
    (["plann", DIGITS], "plann", "did you mean plan?"),
    (["plan"], "RUN.yaml", "required"),
    (["plan", "nowhere.yaml"], "nowhere.yaml", "No such file"),
    (["plan", DIGITS, "--gpuss", "8"], "--gpuss", "did you mean --gpus?"),
    (["plan", DIGITS, "--gpus", "many"], "--gpus", "many"),
    (["plan", DIGITS, "--gpus", "-3"], "--gpus", "-3"),
    (["plan", DIGITS, "--gpus", "7", "--nodes", "2"], "--nodes", "7 ranks"),
    (["plan", DIGITS, "--nodes", "0"], "--nodes", "at least 1"),
    (["plan", DIGITS, "--gpus", "0", "--procs", "0"], "--procs", "at least 1"),
    (["plan", DIGITS, "--lr-at", "0,x"], "--lr-at", "whole steps"),
    (["plan", DIGITS, "--lr-at", "-1"], "--lr-at", ""),
    (["plan", DIGITS, "--optim.lrr", "1"], "optim.lrr", "did you mean lr?"),
    (["plan", DIGITS, "--optim.lr"], "--optim.lr", "expected one argument"),
    (["plan", DIGITS, "--optm.lr", "1"], "optm", "did you mean optim?"),
    (["plan", DIGITS, "--recipe.colour"], "--recipe.colour", "no value"),
    (["plan", DIGITS, "--batch.total", "100", "--gpus", "8"], "batch.total", "nearest: 96, 104"),
    (["plan", DIGITS, "stray"], "stray", "not understood"),
    (["train", DIGITS, "--simulate-world", "0"], "--simulate-world", "at least 1"),
    (["train", DIGITS, "--recipe.widht", "3"], "recipe.widht", "did you mean width?"),
    (["train", DIGITS, "--recipe.width", "wide"], "recipe.width", "whole number"),
    (["train", DIGITS, "--recipe.samples", "99"], "recipe.samples", "write 1437"),
    (["train", DIGITS, "--recipe.use", "digit"], "recipe.use", "did you mean digits?"),
    (["launch", DIGITS, "--gpus", "64"], "--gpus", "64 asked for"),
    (["launch", DIGITS, "--gpus", "64", "--nodes", "8"], "--nodes", "--rendezvous"),
    (["launch", DIGITS, "--gpus", "64", "--nodes", "8", "--rendezvous", "a:1"], "run.dir", "--run.dir"),
    (["launch", DIGITS, "--gpus", "64", "--nodes", "8:2"], "--nodes", "smaller"),
    (["launch", DIGITS, "--gpus", "64", "--nodes", "a:2"], "--nodes", "no number of nodes"),
]


@pytest.mark.parametrize(
    ("argv", "setting", "fragment"), MISTAKES, ids=lambda v: " ".join(v[1:])[-40:] if isinstance(v, list) else ""
)
def test_a_mistake_is_one_line_with_setting_and_remedy_and_status_2(
    argv: list[str],
    setting: str,
    fragment: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(argv) == 2
    captured = capsys.readouterr()
    line = captured.err.removesuffix("\n")
    assert line.startswith("error: ")
    assert "\n" not in line
    assert setting in line
    assert fragment in line
    assert ";" in line
    assert not list(tmp_path.iterdir()), "a mistake leaves nothing behind"


@pytest.mark.parametrize(("argv", "status"), [(["plan", DIGITS, "--json"], 141), (["--help"], 141), (["plan", "x"], 2)])
def test_a_reader_that_leaves_early_ends_a_command_without_a_word(argv: list[str], status: int) -> None:
    """As `widebatch ... | head` does, here before the first line."""
    read, written = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "launch", *argv]
    done = subprocess.run(command, stdout=written, stderr=subprocess.PIPE, text=True, env=environ(), cwd=ROOT, check=False)
    os.close(written)
    assert done.returncode == status, done.stderr
    assert ("Traceback" in done.stderr, bool(done.stderr)) == (False, status == 2)
