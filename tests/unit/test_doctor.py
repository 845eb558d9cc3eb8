"""What is found wrong with a machine comes with a remedy; the ranks that are measured are real ones."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import which

import pytest

from harness.analysis import machine_checks as machine
from harness.analysis.machine_checks import GIB, Finding, Lap
from harness.engine.deepspeed_build import own_programs, stale_locks
from launch.cli import main
from launch.commands.doctor import checkup_command, installed
from tests.support.processes import ROOT

INF = float("inf")
LAPS = [Lap(8, 20e-6), Lap(1 << 26, 10e-3)]
JUDGED: list[tuple[Callable[[], Finding], str, str]] = [
    (lambda: machine.gpus(2, ["H100", "H100"], "12.8"), "ok", "2 x H100"),
    (lambda: machine.gpus(2, ["H100"], "12.8"), "fail", "update the NVIDIA driver"),
    (lambda: machine.gpus(2, [], None), "fail", "install torch for CUDA"),
    (lambda: machine.gpus(2, ["H100", "A100"], "12.8"), "warn", "one kind"),
    (lambda: machine.gpus(0, [], None), "warn", "--gpus 0 --procs N"),
    (lambda: machine.collectives(2, None, True), "fail", "NCCL"),
    (lambda: machine.collectives(0, None, False), "fail", "gloo"),
    (lambda: machine.collectives(2, "2.27.3", True), "ok", "NCCL 2.27.3"),
    (lambda: machine.shared_memory(64 * 2**20), "warn", "--shm-size"),
    (lambda: machine.shared_memory(None), "fail", "--shm-size"),
    (lambda: machine.shared_memory(8 * GIB), "ok", "8.00 GiB"),
    (lambda: machine.limits(1024, INF, False), "warn", "ulimit -n"),
    (lambda: machine.limits(INF, 65536, True), "warn", "ulimit -l"),
    (lambda: machine.limits(INF, 65536, False), "ok", ""),
    (lambda: machine.cores(1.5, 8), "warn", "more cores"),
    (lambda: machine.cores(16, 8), "ok", "16 for 8 ranks"),
    (lambda: machine.address("node1", "10.0.0.7", None, True), "ok", "10.0.0.7"),
    (lambda: machine.address("node1", "127.0.1.1", None, True), "warn", "GLOO_SOCKET_IFNAME"),
    (lambda: machine.address("node1", None, None, True), "warn", "/etc/hosts"),
    (lambda: machine.address("node1", "10.0.0.7", 29500, False), "fail", "29500"),
    (lambda: machine.listens(["127.0.0.1:4 (lo)"], ["*:5 (every interface)"]), "ok", "launcher on *:5 (every interface)"),
    (lambda: machine.listens(["*:4 (every interface)"], []), "ok", "no password"),
    (lambda: machine.clock(0.002, 86400), "ok", "2 ms"),
    (lambda: machine.clock(30.0, 86400), "warn", "chrony"),
    (lambda: machine.clock(0.0, -5), "fail", "certificates"),
    (lambda: machine.disk("/data", 900, 100 * GIB), "ok", "900 MB/s"),
    (lambda: machine.disk("/data", 20, 100 * GIB), "warn", "slow"),
    (lambda: machine.disk("/data", 900, GIB), "warn", "make room"),
    (lambda: machine.disk("/data", None, 0, "Read-only file system"), "fail", "Read-only"),
    (lambda: machine.wandb("timed out", True), "warn", "wandb sync"),
    (lambda: machine.wandb("", False), "warn", "wandb login"),
    (lambda: machine.wandb("", True), "ok", "answers"),
    (lambda: machine.operators(True, ["/c/shm/lock"], True, 0), "fail", "rm /c/shm/lock"),
    (lambda: machine.operators(False, [], False, 0), "warn", "g++"),
    (lambda: machine.operators(False, [], True, 0), "ok", "first use"),
    (lambda: machine.operators(False, [], False, 8), "ok", "no operator"),
    (lambda: machine.bandwidth(LAPS, 8, 1, True, True), "ok", "11.74 GB/s"),
    (lambda: machine.bandwidth([Lap(1 << 26, 1.0)], 8, 1, True, True), "warn", "topo -m"),
    (lambda: machine.bandwidth([Lap(1 << 26, 1.0)], 16, 2, True, True), "warn", "NCCL_SOCKET_IFNAME"),
    (lambda: machine.bandwidth([Lap(1 << 26, 1.0)], 2, 1, False, True), "ok", "GB/s"),
    (lambda: machine.bandwidth(LAPS, 8, 1, True, False), "fail", "do not train"),
]


@pytest.mark.parametrize(("judge", "status", "fragment"), JUDGED)
def test_a_fact_is_judged_and_what_is_wrong_has_a_remedy(judge: Callable[[], Finding], status: str, fragment: str) -> None:
    finding = judge()
    assert finding.status == status
    assert fragment in f"{finding.found} {finding.remedy}"
    assert bool(finding.remedy) == (status != "ok")


def test_what_is_installed_here_is_what_is_tested() -> None:
    rows = installed()
    assert {"torch", "accelerate", "wandb"} <= {name for name, *_ in rows}
    assert not any("pytest" in name for name, *_ in rows), "extras are no requirement"
    assert [f.status for f in machine.versions(rows)] == ["ok"]
    old = machine.versions([("torch", ">=2.9", "2.1.0", False), ("wandb", ">=0.22", None, False)])
    assert [(f.status, f.remedy) for f in old] == [("fail", "pip install 'torch>=2.9'"), ("fail", "pip install 'wandb>=0.22'")]


def test_real_ranks_measure_their_sums(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    runs = tmp_path / "runs"
    runs.mkdir()
    assert main(["doctor", "--gpus", "0", "--procs", "2", "--seconds", "0.5", "--dir", str(runs), "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    found = {check["name"]: check for check in told["checks"]}
    assert set(found) == {
        "versions", "gpus", "collectives", "shared memory", "limits", "cpu cores", "ports", "clock", "disk", "wandb", "deepspeed",
        "all-reduce", "listens",
    }  # fmt: skip
    assert re.match(r"rank 0 on 127\.[\d.]+:\d+ \(lo\)(, 127\S+ \(lo\))*; its launcher on \*:\d+", found["listens"]["found"])
    assert [lap["bytes"] for lap in told["all_reduce"]] == [8, 1 << 10, 1 << 16, 1 << 20, 1 << 24, 1 << 26]
    assert all(lap["seconds"] > 0 for lap in told["all_reduce"])
    assert str(runs) in found["disk"]["found"]
    assert not list(runs.iterdir()), "the disk is left as it was"


@pytest.mark.parametrize(
    ("argv", "fragment"),
    [
        (["--gpus", "64"], "64 asked for, 0 here"),
        (["--procs", "0"], "--procs"),
        (["--seconds", "0"], "--seconds"),
        (["--gpu", "1"], "--gpu"),
    ],
)
def test_mistakes_are_one_line(
    argv: list[str], fragment: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["doctor", *argv]) == 2
    error = capsys.readouterr().err
    assert fragment in error
    assert error.count("\n") == 1


def test_the_ranks_are_started_by_a_command_one_can_read() -> None:
    assert str(checkup_command("python", "out.json", 2, False, 10)) == (
        "ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1 python -m torch.distributed.run --standalone --nproc_per_node 2 "
        "--log-dir torchrun "
        "-m harness.tools.rank_checks --out out.json --seconds 10"
    )
    assert (
        str(checkup_command("python", "out.json", 1, True, 10)) == "python -m harness.tools.rank_checks --out out.json --seconds 10"
    )


def test_a_lock_is_stale_when_nobody_holds_it(tmp_path: Path) -> None:
    lock = tmp_path / "shm_comm" / "lock"
    lock.parent.mkdir()
    with lock.open("w"):
        assert stale_locks(tmp_path) == []
    assert stale_locks(tmp_path) == [lock]


def test_deepspeed_s_operators_are_built_by_this_environment_s_ninja(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one, as a shell without this environment finds it first, would build them again: half a minute at every change."""
    other = tmp_path / "ninja"
    other.touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with own_programs():
        assert which("ninja") == str(Path(sys.executable).parent / "ninja")
    assert which("ninja") == str(other)


def test_people_read_a_line_for_each_finding_and_its_remedy_under_it() -> None:
    findings = [machine.shared_memory(64 * 2**20), machine.cores(16, 8), machine.bandwidth(LAPS, 8, 1, True, True)]
    text = "\n".join(machine.lines(findings, LAPS, 8)) + "\n"
    assert text == (ROOT / "tests" / "golden" / "doctor.txt").read_text()
