"""What accelerate is given: pure text, compared with golden files."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from harness.config.errors import UserError
from harness.config.loader import load
from harness.plan.plan import plan
from harness.plan.world import Device, World
from launch.cli import main
from launch.cluster.torchrun import Meeting, check_worlds, hosts_command, meeting
from launch.processes.command import accelerate_file, worker_command
from launch.processes.spawn import gpu_count, visible_gpus
from tests.support.processes import ROOT

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


ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


@given(python=ANY, folder=ANY, interface=ANY)
@example(python="/opt/py; id", folder="a b/$(id)", interface="eth0\nid")
def test_what_is_printed_means_to_a_shell_what_is_run(python: str, folder: str, interface: str) -> None:
    command = worker_command(python, folder, World(2, 1, "cpu"))
    command = replace(command, environ={**command.environ, "GLOO_SOCKET_IFNAME": interface})
    environ = [f"{name}={value}" for name, value in command.environ.items()]
    assert shlex.split(str(command)) == [*environ, *command.argv]


NASTY = st.one_of(ANY, st.from_regex(r"[a-z0-9.]{1,4}[\n\r;$`'\" #&|<>(){}*?%:/\u2028-]{1,3}[a-z0-9]{0,3}", fullmatch=True))


@given(rendezvous=NASTY, interface=NASTY)
@example(rendezvous="n1:29400\n", interface="eth0")
@example(rendezvous="--help:1", interface="eth0")
@example(rendezvous="127.0.0.1:29400", interface="lo\n")
@example(rendezvous="127.0.0.1:٣", interface="lo")
def test_a_meeting_place_is_refused_or_known_as_a_whole(rendezvous: str, interface: str) -> None:
    with pytest.raises(UserError) as caught:
        meeting(rendezvous, interface, 2, "/run")
    assert "\n" not in str(caught.value)
    if caught.value.problem.startswith("is "):
        return  # refused as a word, before anything is asked
    host, _, port = rendezvous.rpartition(":")
    assert re.fullmatch(r"[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]", host)
    assert port.isascii()
    assert port.isdecimal()


@given(folder=NASTY)
@example(folder="a\n")
@example(folder="--rdzv-conf=x")
def test_a_run_folder_of_several_hosts_is_refused_or_one_argument(folder: str) -> None:
    path = Path("/data") / f"x{folder}"
    try:
        command = hosts_command("python", path, World(4, 2, "cpu"), MEETING, asked=False)
    except UserError:
        return
    assert re.fullmatch(r"/[A-Za-z0-9._/@+=,-]*", str(path))
    assert f"{path}/run.yaml" in command.argv


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("", []), ("0", ["0"]), ("2,0", ["2", "0"]), ("0,-1,1", ["0"]), ("-1", []), ("NoDevFiles", []), ("0,,1", ["0"]),
        ("0, 1", ["0", "1"]), ("0,0", []), ("GPU-8932f937-d72c,1", ["GPU-8932f937-d72c", "1"]), ("1\n,x", ["1"]),
    ],
)  # fmt: skip
def test_gpus_are_counted_as_cuda_reads_the_variable(visible: str, expected: list[str]) -> None:
    assert visible_gpus(visible) == expected
    assert gpu_count(visible) == len(expected)


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
