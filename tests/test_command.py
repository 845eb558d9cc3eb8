"""What accelerate is given: pure text, compared with golden files."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from harness.plan.decode import load
from harness.plan.errors import UserError
from harness.plan.plan import plan
from harness.plan.world import Device, World
from launch.cli import main
from launch.command import accelerate_file, worker_command
from launch.hosts import Meeting, check_worlds, hosts_command
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


MEETING = Meeting(host="n1", port=29400, address="10.0.0.2", interface="eth0", fewest=2)


@pytest.mark.parametrize(("name", "fewest", "device"), [("fixed", 2, "gpu"), ("elastic", 1, "gpu"), ("cpu", 2, "cpu")])
def test_the_command_on_each_of_several_hosts_is_as_recorded(name: str, fewest: int, device: Device) -> None:
    command = hosts_command("python", Path("/run"), World(8, 2, device), replace(MEETING, fewest=fewest), asked=fewest == 1)
    assert f"{command}\n" == (GOLDEN / f"hosts_{name}.sh").read_text()


def test_a_batch_that_a_smaller_world_cannot_split_is_refused_before_anything_starts() -> None:
    config = load(ROOT / "configs" / "digits.yaml", {"batch.total": "96"})
    check_worlds(config, World(16, 2), 1, None)
    check_worlds(config, World(32, 4), 2, None)
    with pytest.raises(UserError, match=r"batch.total: with 5 nodes 40 ranks are left, and 96 does not split over 40 GPUs"):
        check_worlds(config, World(48, 6), 3, None)


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
