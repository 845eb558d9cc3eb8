"""Ranks listen on the address they were given, and find the interface that leads to it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from harness.engine.network import addresses, interface, toward
from harness.plan.errors import UserError
from harness.survive.launched import Launched
from harness.survive.pulse import read
from tests.dist.processes import ROOT, environ
from tests.faults.launching import wait_for
from tests.test_resume import run_file

TWO_NODES = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}


def test_ranks_listen_on_the_address_of_the_rendezvous_only(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "dist" / "listening.py")],
            env=environ() | meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    told = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert told[0].split() == ["listening", "0100007F"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_waits_for_others_hears_a_stop(tmp_path: Path, rank: int) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    told = Launched(os.getpid(), str(tmp_path), "/dev/null")
    meeting = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    meeting |= {"RANK": str(rank), "LOCAL_RANK": str(rank), **told.environ()}
    argv = [sys.executable, "-m", "harness", str(run_file(tmp_path, "total: 8"))]
    with subprocess.Popen(argv, env=environ() | meeting) as worker:
        wait_for(lambda: read(told.pulse(rank)), "its pulse")
        worker.terminate()
        assert worker.wait(timeout=120) == 75
    assert not (tmp_path / "run").exists()


def test_one_node_needs_no_interface() -> None:
    assert interface({}, cpu=True) is None
    assert interface(TWO_NODES | {"LOCAL_WORLD_SIZE": "2"}, cpu=True) is None


def test_a_rendezvous_host_that_only_itself_can_reach_is_refused_on_a_cpu() -> None:
    with pytest.raises(UserError, match=r"MASTER_ADDR: 127.0.0.1 is 127.0.0.1 on .*, which no other host can reach"):
        interface(TWO_NODES, cpu=True)
    assert interface(TWO_NODES, cpu=False) is None, "NCCL finds its own"


def test_the_interface_of_the_environment_is_looked_for() -> None:
    assert interface(TWO_NODES | {"GLOO_SOCKET_IFNAME": "lo"}, cpu=True) == "lo"
    with pytest.raises(UserError, match=r"is 'nowhere0', but .* has .*lo"):
        interface(TWO_NODES | {"GLOO_SOCKET_IFNAME": "nowhere0"}, cpu=True)


def test_own_addresses_have_the_loopback() -> None:
    assert addresses()["127.0.0.1"] == "lo"
    assert toward("127.0.0.1", None, setting="x") == ("127.0.0.1", "lo")
