"""The sbatch script: pure text, compared with golden files; no name that a user gives can reach the shell in it."""

import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from harness.config.errors import UserError
from harness.plan.world import World
from launch.cli import main
from launch.cluster.slurm import Job, sbatch_script
from launch.cluster.slurm_submit import combinations
from tests.support.processes import ROOT

GOLDEN = ROOT / "tests" / "golden"
FULL = Job(
    name="imagenet",
    partition="gpu,long",
    time="1-12:00:00",
    account="vision",
    qos="high",
    cpus_per_task=12,
    signal_s=300,
    restarts=1,
    interface="ib0",
    tasks=6,
    at_once=2,
)
CASES = [
    ("gpus", Job(name="digits"), World(32, 4)),
    ("cpu", Job(name="digits"), World(4, 2, "cpu")),
    ("array", FULL, World(16, 2)),
]


@pytest.mark.parametrize(("name", "job", "world"), CASES, ids=[c[0] for c in CASES])
def test_script_is_as_recorded_and_bash_can_read_it(name: str, job: Job, world: World, tmp_path: Path) -> None:
    text = sbatch_script(job, world, Path("/data/runs/digits"), "/opt/env/bin/python")
    assert text == (GOLDEN / f"sbatch_{name}.sh").read_text()
    (tmp_path / "job").write_text(text)
    subprocess.run(["bash", "-n", str(tmp_path / "job")], check=True)


NAMES = ("name", "partition", "time", "account", "qos", "interface")
SAFE = re.compile(r"[A-Za-z0-9._,:-]+")
nasty = st.one_of(st.text(max_size=20), st.from_regex(r"[a-z0-9]{1,4}[\n\r;$`'\" #&|<>\\(){}*?!%~\x00\u2028]{1,3}[a-z]{0,3}"))


@given(field=st.sampled_from(NAMES), value=nasty)
@example(field="name", value="a\n")
@example(field="name", value="a\n#SBATCH --wrap=id")
@example(field="name", value="--wrap=id")
@example(field="partition", value="gpu,$(id)")
@example(field="time", value="١:00")
def test_a_name_is_refused_or_harmless(field: str, value: str) -> None:
    given_: dict[str, Any] = {field: value}
    try:
        job = replace(Job(name="digits"), **given_)
    except UserError:
        return
    assert SAFE.fullmatch(value)
    assert not value.startswith("-")
    text = sbatch_script(job, World(8, 2), Path("/run"), "/python")
    assert sum(value in line for line in text.splitlines()) >= 1


@given(path=nasty, which=st.sampled_from(["run", "python"]))
@example(path="a b", which="run")
@example(path="%u", which="run")
@example(path="x\n", which="python")
def test_a_path_is_refused_or_harmless(path: str, which: str) -> None:
    folder, python = Path("/data") / "run", "/opt/python"
    if which == "run":
        folder = Path("/data/" + path)
    else:
        python = "/opt/" + path
    try:
        text = sbatch_script(Job(name="digits"), World(8, 2), folder, python)
    except UserError:
        return
    assert re.fullmatch(r"[A-Za-z0-9._/@+=,-]*", path)
    assert len(text.splitlines()) == len(sbatch_script(Job(name="digits"), World(8, 2), Path("/d"), "/p").splitlines())


def test_every_combination_of_the_array_once_the_last_setting_fastest() -> None:
    found = list(combinations(["optim.lr=0.1,0.2", "run.seed=0,1"]))
    assert [tuple(c.values()) for c in found] == [("0.1", "0"), ("0.1", "1"), ("0.2", "0"), ("0.2", "1")]
    assert list(combinations([])) == [{}]


@pytest.mark.parametrize("text", ["optim.lr", "optim.lr=", "optim.lr=1,,2", "lr=1", "=1,2"])
def test_an_array_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--array"):
        list(combinations([text]))


def test_a_dry_run_prints_every_plan_and_the_script_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", "a-key-of-mine")
    argv = ["launch", str(ROOT / "configs" / "digits.yaml"), "--slurm", "--gpus", "16", "--nodes", "2", "--dry-run"]
    assert main([*argv, "--array", "optim.lr=0.02,0.04", "--run.dir", "here"]) == 0
    out = capsys.readouterr().out
    assert "--array=0-1" in out
    assert f"run={tmp_path}/here/$SLURM_ARRAY_TASK_ID" in out
    assert "run 1: optim.lr 0.04" in out
    assert f"# {tmp_path}/here/1/run.yaml" in out
    assert "a-key-of-mine" not in out
    assert not list(tmp_path.iterdir())


def test_slurm_without_sbatch_is_a_mistake_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    argv = ["launch", str(ROOT / "configs" / "digits.yaml"), "--submit", "--gpus", "16", "--nodes", "2"]
    assert main(argv) == 2
    assert capsys.readouterr().err.startswith("error: --submit: sbatch: ")


@pytest.mark.parametrize(
    ("flags", "setting"),
    [
        (["--slurm", "--nodes", "2"], "--gpus"),
        (["--gpus", "8", "--partition", "long"], "--partition"),
        (["--gpus", "8", "--array", "run.seed=1,2"], "--array"),
        (["--gpus", "8", "--slurm", "--signal-s", "1"], "--signal-s"),
        (["--gpus", "8", "--slurm", "--cpus-per-task", "0"], "--cpus-per-task"),
    ],
)
def test_what_the_job_lacks_is_said(flags: list[str], setting: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", str(ROOT / "configs" / "digits.yaml"), *flags, "--dry-run"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {setting}: ")
