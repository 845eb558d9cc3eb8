"""The command line: plan and --help without torch, JSON for programs, mistakes in one line with status 2."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from harness.config import setting_values
from harness.config.field_docs import field_docs
from harness.config.flags import MOST_USED
from launch.cli import main
from launch.options.commands import COMMANDS
from tests.support.processes import ROOT, environ, run_command

DIGITS = str(ROOT / "configs" / "digits.yaml")
OLD = ROOT / "tests" / "old"
KEYS = set(
    """
world_size nodes micro_batch accumulate global_batch reference_batch ratio rule lr reference_lr weight_decay momentum
betas
eps warmup_samples warmup_steps total_samples total_steps schedule backend precision warnings sources""".split()  # noqa: SIM905
)


def run_without(modules: list[str], argv: list[str], cwd: Path, before: str = "") -> str:
    """What a command prints that is to import none of `modules`; the code `before` runs first."""
    code = (
        f"{before}import sys\nfrom launch.cli import main\n"
        f"try:\n    status = main({argv!r})\nexcept SystemExit as e:\n    status = e.code\n"
        f"assert not status, status\nloaded = [m for m in {modules!r} if m in sys.modules]\nassert not loaded, loaded"
    )
    return run_command([sys.executable, "-c", code], cwd)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_text(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A per cent sign in one was a format of argparse's, and a traceback."""
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")


def test_help_shows_the_settings_used_most_and_help_all_every_one_with_its_values(capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as end:
            main(["train", flag])
        assert end.value.code == 0
        texts.append(" ".join(capsys.readouterr().out.encode("ascii").decode().split()))
    short, whole = texts
    assert set(re.findall(r"--([a-z_]+\.[a-z_]+) VALUE", short)) == {*MOST_USED, "section.setting"}
    assert set(re.findall(r"--([a-z_]+\.[a-z_0-9]+|precision|init_from|init_partial) VALUE", whole)) >= set(field_docs()) - {
        "recipe.knobs"
    }
    assert "--backend.name VALUE ddp: a whole copy per GPU" in whole
    assert "[ddp, fsdp, zero0, zero1, zero2, zero3; default: ddp]" in short
    assert "[number > 0; must be given]" in short


def test_a_setting_whose_values_are_not_known_is_an_error_and_no_gap_in_the_help(monkeypatch: pytest.MonkeyPatch) -> None:
    known = setting_values.setting_values()
    assert set(known) == set(field_docs()) - {"recipe.knobs"}
    monkeypatch.setattr(setting_values, "setting_values", lambda: {name: known[name] for name in known if name != "optim.lr"})
    with pytest.raises(KeyError, match=r"optim\.lr"):
        main(["train", "--help"])


@pytest.mark.parametrize(
    "argv", [["plan", DIGITS, "--gpus", "64"], ["--help"], ["plan", "--help"], ["train", "--help"], ["launch", "--help"]]
)
def test_planning_and_help_import_neither_torch_nor_any_other_heavy_package(argv: list[str]) -> None:
    assert run_without(["torch", "accelerate", "deepspeed", "wandb", "transformers", "numpy", "sklearn"], argv, ROOT)


def test_planning_needs_neither_processes_nor_the_words_about_settings() -> None:
    """`inspect.getsource` reads those for --help and for an unknown flag: 10 ms of every command, with the flags made of them."""
    code = "import inspect\ninspect.getsource = None\n"
    argv = ["plan", DIGITS, "--gpus", "0", "--procs", "2", "--batch.per_gpu", "16", "--json"]
    modules = ["subprocess", "difflib", "secrets", "harness.config.user_errors", "harness.analysis.measured_speeds"]
    assert json.loads(run_without(modules, argv, ROOT, code))["global_batch"] == 32


def test_training_in_one_process_imports_neither_torch_s_compiler_nor_scikit_learn(tmp_path: Path) -> None:
    """A CPU second each: torch._dynamo, which torch's optimizers load, and scikit-learn, which brings the file of digits."""
    heavy = [
        "torch._dynamo",
        "torch.distributed.tensor",
        "torch.distributed._functional_collectives",
        "sympy",
        "scipy",
        "deepspeed",
        "wandb",
        "transformers",
    ]
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


BEFORE: list[list[str]] = [
    ["--recipe.width", "8", "--json", "--recipe.bias", "true", "--recipe.sizes", "[1, 2]", DIGITS],
    ["--recipe.width=8", "--optim.lr", "1e-3", "--json", DIGITS, "--gpus", "2"],
    ["--gpus", "4", "--batch.per-gpu", "8", "--scaling.warmup-epochs", "2", DIGITS, "--json"],
    ["--precision", "bf16", "--json", DIGITS, "--total=64"],
    ["--stop-after-steps", "4", "--warmup_epochs", "1", "--json", DIGITS, "--recipe.no-such", "-1"],
    ["--gpus", "4", "batch.per_gpu=8", "warmup_epochs=2", "--json", DIGITS, "recipe.width=8", "precision=bf16"],
]


@pytest.mark.parametrize("argv", BEFORE, ids=" ".join)
def test_flags_stand_before_the_run_file_with_hyphens_and_without_a_section(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Every flag but those that are switches takes a value, and the run file is what is left."""
    assert main(["plan", *argv, "--recipe.samples", "1437"]) == 0
    assert json.loads(capsys.readouterr().out)["total_samples"] == 30 * 1437


LEFT_OVER = {"WORLD_SIZE": "8", "LOCAL_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "PMI_SIZE": "4", "SLURM_STEP_ID": "0"}
LEFT_OVER |= {
    "SLURM_STEP_NUM_TASKS": "2",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29600",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}


def test_one_process_trains_alone_and_a_launcher_starts_its_ranks_whatever_was_left_over(tmp_path: Path) -> None:
    start, end = [sys.executable, "-m", "launch"], ["--run.stop_after_steps", "3", "--watch.wandb", "off"]
    argv = ["env", *(f"{name}={value}" for name, value in LEFT_OVER.items()), *start]
    told = run_command([*argv, "train", DIGITS, *end], tmp_path)
    assert "note: WORLD_SIZE=8 LOCAL_RANK=1 OMPI_COMM_WORLD_SIZE=2 PMI_SIZE=4 in the environment: left over" in told
    assert "1 process on cpu" in told
    assert "1 process on cpu" in run_command([*argv, "launch", DIGITS, "--gpus", "0", "--procs", "1", *end], tmp_path)


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"widebatch {version('widebatch')}\n"


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
    (["plan", DIGITS, "--optim.lr"], "--optim.lr", "has no value"),
    (["plan", DIGITS, "--optm.lr", "1"], "optm", "did you mean optim?"),
    (["plan", DIGITS, "--recipe.colour"], "--recipe.colour", "no value"),
    (["plan", DIGITS, "--batch.total", "100", "--gpus", "8"], "batch.total", "nearest: 96, 104"),
    (["plan", DIGITS, "stray"], "stray", "not a known argument"),
    (["plan", DIGITS, "--jsn"], "--jsn", "did you mean --json?"),
    (["plan", DIGITS, "--width", "3"], "--width", "a field of the recipe is set by --recipe.width"),
    (["plan", "--recipe.bias", DIGITS], "--recipe.bias", "consumed the run file"),
    (["plan", DIGITS, "--recipe.width", "--json"], "--recipe.width", "has no value"),
    (["plan", DIGITS, "--dir", "x"], "--dir", "--checkpoint.dir or --run.dir"),
    (["plan", DIGITS, "--warmup-steps", "500"], "warmup_steps", "scaling.warmup_samples: 16000"),
    (["Plan", DIGITS], "widebatch", "did you mean plan?"),
    (["train", DIGITS, "--simulate-world", "0"], "--simulate-world", "at least 1"),
    (["train", DIGITS, "--recipe.widht", "3"], "recipe.widht", "did you mean width?"),
    (["train", DIGITS, "--recipe.width", "wide"], "recipe.width", "whole number"),
    (["train", DIGITS, "--recipe.samples", "99"], "recipe.samples", "write 1437"),
    (["train", DIGITS, "--recipe.use", "digit"], "recipe.use", "did you mean digits?"),
    (["launch", DIGITS, "--gpus", "64"], "--gpus", "64 asked for"),
    (["launch", DIGITS, "--gpus", "64", "--nodes", "8"], "--nodes", "--rendezvous"),
    (["launch", DIGITS, "--gpus", "64", "--nodes", "8", "--rendezvous", "a:1"], "run.dir", "--run.dir"),
    (["launch", DIGITS, "--gpus", "64", "--nodes", "8:2"], "--nodes", "smaller"),
    (["launch", DIGITS, "--gpus", "64", "--nodes", "a:2"], "--nodes", "is not a number of nodes"),
    (["report"], "RUN", "required"),
    (["report", str(OLD)], "events.jsonl", f"such as {OLD}"),
    (["export", "x"], "--out", "required"),
    (["samples", "x"], "--step", "required"),
    (["tokenize", "--ouut", "x"], "--out", "required"),
    (["train", DIGITS, "--gpus", "2"], "--gpus", "`widebatch launch` and `widebatch plan` take it"),
    (["train", DIGITS, "--learning-rate", "3"], "--learning-rate", "did you mean --optim.lr?"),
    (["train", DIGITS, "--num_train_epochs", "3"], "--num_train_epochs", "did you mean --schedule.epochs?"),
    (["train", DIGITS, "--colour", "3"], "--colour", "set by --recipe.colour"),
    (["plan", __file__], "is a Python file", f"`widebatch init {__file__}`"),
    (["plan", DIGITS.replace("yaml", "yml")], "digits.yml", f"did you mean {DIGITS}?"),
    (["plan", str(OLD / "run")], "Is a directory", "run.yaml?"),
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


@pytest.mark.parametrize(
    "argv", [["plan", DIGITS], ["plan", DIGITS, "--json"], ["launch", DIGITS, "--gpus", "0", "--dry-run"], ["--help"]]
)
def test_an_output_that_cannot_be_written_is_one_line(argv: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "launch", *argv]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environ(), cwd=ROOT, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: standard output cannot be written (No space left on device)\n"


@pytest.mark.parametrize("command", [["train"], ["launch", "--gpus", "0"]])
def test_a_run_folder_that_cannot_be_written_is_one_line(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """As a volume of a container that belongs to another user."""
    name, *more = command
    assert main([name, DIGITS, *more, "--run.dir", "/proc/none/run", "--watch.wandb", "off"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert line.startswith("error: run.dir: /proc/none/run")
    assert "No such file or directory" in line
    assert "give another" in line
