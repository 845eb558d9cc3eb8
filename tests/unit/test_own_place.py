"""Tools that make runs of a user's run file: none touches the checkpoints of the user's own run, nor those of another trial."""

import ast
from pathlib import Path

import pytest

from harness.config.loader import load
from launch.cli import main
from launch.lab.trials import of_config
from tests.support.processes import ROOT
from tests.unit.test_layers import FILES

RUN = """
recipe: {use: digits, samples: 1437, width: 4}
batch: {reference: 32, total: 32}
optim: {lr: 0.02}
scaling: {warmup_samples: 0}
schedule: {samples: 640}
checkpoint: {every_samples: 160, keep: 2}
watch: {wandb: "off", every_steps: 2}
run: {stop_after_steps: null}
"""
TOOLS = {
    "bench": ["--gpus", "0", "--procs", "1", "--steps", "6"],
    "sweep": ["--batches", "32,64", "--rules", "none", "--seeds", "1", "--chain", "2"],
}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(run file, place of the checkpoints) of a user's run in its midst."""
    home = tmp_path_factory.mktemp("real")
    (home / "run.yaml").write_text(RUN)
    at = ["--checkpoint.dir", str(home / "ck"), "--run.dir", str(home / "run"), "--run.stop_after_steps", "12"]
    assert main(["train", str(home / "run.yaml"), *at]) == 0
    return home / "run.yaml", home / "ck"


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_leaves_the_real_run_s_checkpoints_alone(tool: str, real: tuple[Path, Path], tmp_path: Path) -> None:
    run, kept = real
    before = contents(kept)
    assert [name for name in before if name.endswith("manifest.json")], "there are checkpoints to lose"
    assert main([tool, str(run), "--checkpoint.dir", str(kept), "--out", str(tmp_path / "out"), *TOOLS[tool]]) in (0, 1)
    assert contents(kept) == before
    trials = sorted((tmp_path / "out" / "trials").iterdir())
    assert trials
    for one in trials:
        journal = (one / "events.jsonl").read_text()
        assert "resumed" not in journal, "a trial resumes from no other run's checkpoint"
        assert load(one / "run.yaml").checkpoint.dir is None


def test_trials_of_lr_range_and_branch_keep_their_checkpoints_in_their_folders(real: tuple[Path, Path], tmp_path: Path) -> None:
    run, kept = real
    config = load(run, {"checkpoint.dir": str(kept)})
    one = of_config(config, "lr-x2-s0", tmp_path, steps=3)
    assert (one.config.checkpoint.dir, one.config.run.dir) == (None, str(tmp_path / "trials" / "lr-x2-s0"))


def test_each_run_of_an_array_has_a_place_of_its_own_where_the_user_said(real: tuple[Path, Path], tmp_path: Path) -> None:
    run, kept = real
    flags = ["--gpus", "2", "--slurm", "--array", "optim.lr=0.1,0.2", "--run.dir", str(tmp_path / "array")]
    assert main(["launch", str(run), "--checkpoint.dir", f"{kept}/", *flags]) == 0
    places = [load(tmp_path / "array" / name / "run.yaml") for name in "01"]
    assert [p.checkpoint.dir for p in places] == [f"{kept}/0", f"{kept}/1"]
    assert [p.run.dir for p in places] == [str(tmp_path / "array" / name) for name in "01"]
    one = ["--gpus", "2", "--slurm", "--run.dir", str(tmp_path / "one")]
    assert main(["launch", str(run), "--checkpoint.dir", str(kept), *one]) == 0
    assert load(tmp_path / "one" / "run.yaml").checkpoint.dir == str(kept)


def test_only_one_function_gives_a_run_its_place() -> None:
    """A tool that sets run.dir by itself would forget the checkpoints: `own_place` sets both."""
    found = [
        f"{file}:{node.lineno}"
        for file in FILES
        for node in ast.walk(ast.parse((ROOT / file).read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "replace" and "run" in ast.unparse(node.args[0]).split(".")
        and any(k.arg == "dir" and not (isinstance(k.value, ast.Constant) and k.value.value is None) for k in node.keywords)
    ]  # fmt: skip
    homes = {line.partition(":")[0] for line in found}
    # the user's own run (a worker, launch, a job, pods), and the run file that resumes a lab command's run in its folder
    own = {
        "harness/training/run_files.py",
        "launch/commands/launch.py",
        "launch/cluster/slurm_submit.py",
        "launch/cluster/kubernetes_submit.py",
        "launch/lab/results.py",
    }
    assert homes - own == {"launch/processes/run_folder.py"}
