"""What accelerate is given: pure text, compared with golden files."""

from pathlib import Path

import pytest
import yaml

from harness.plan.decode import load
from harness.plan.plan import plan
from harness.plan.world import Device, World
from launch.cli import main
from launch.command import accelerate_file, worker_command
from tests.dist.processes import ROOT

GOLDEN = ROOT / "tests" / "golden"


@pytest.mark.parametrize(
    ("name", "ranks", "device"), [("1gpu", 1, "gpu"), ("8gpu", 8, "gpu"), ("1cpu", 1, "cpu"), ("2cpu", 2, "cpu")]
)
def test_accelerate_file_and_command_are_as_recorded(name: str, ranks: int, device: Device) -> None:
    world = World(ranks, 1, device)
    planned = plan(load(ROOT / "configs" / "digits.yaml"), world)
    text = f"# {worker_command('python', 'run', world)}\n{accelerate_file(planned, world)}"
    assert text == (GOLDEN / f"accelerate_{name}.yaml").read_text()


def test_a_path_with_spaces_stays_one_argument() -> None:
    text = str(worker_command("/opt/my python", "my runs/a", World(1)))
    assert "'/opt/my python'" in text
    assert "'my runs/a/run.yaml'" in text


def test_dry_run_prints_files_and_command_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["launch", str(ROOT / "configs" / "digits.yaml"), "--gpus", "8", "--dry-run", "--run.dir", "here"]) == 0
    out = capsys.readouterr().out
    parts = dict(p.split("\n", 1) for p in out.split("# ")[1:])
    assert yaml.safe_load(parts[f"{tmp_path}/here/run.yaml"])["batch"]["per_gpu"] == 32
    assert "num_processes: 8" in out
    assert f"-m harness {tmp_path}/here/run.yaml" in out
    assert not list(tmp_path.iterdir())
