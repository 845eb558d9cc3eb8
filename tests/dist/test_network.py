"""Ranks listen on the address they were given, and find the interface that leads to it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from harness.config.errors import UserError
from harness.distributed.network_interface import addresses, interface, listening, toward
from harness.supervision.heartbeat import read
from harness.supervision.launch_env import Launched, memory_files
from tests.dist.test_resume import run_file
from tests.support.faults.launching import wait_for
from tests.support.ports import reserve_port
from tests.support.processes import LIMIT_S, ROOT, environ

TWO_NODES = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}


def test_ranks_listen_on_the_address_of_the_rendezvous_only(tmp_path: Path) -> None:
    port = str(reserve_port())
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "dist" / "workers" / "listening.py")],
            env=environ() | meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    told = [rank.communicate(timeout=LIMIT_S)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert told[0].split() == ["listening", "0100007F"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_waits_for_others_hears_a_stop(tmp_path: Path, rank: int) -> None:
    told = Launched(os.getpid(), str(tmp_path), "/dev/null", pulses=memory_files(2), errors=memory_files(2))
    meeting = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    meeting |= {"MASTER_PORT": str(reserve_port()), "RANK": str(rank), "LOCAL_RANK": str(rank), **told.environ()}
    argv = [sys.executable, "-m", "harness", str(run_file(tmp_path, "total: 8"))]
    with subprocess.Popen(argv, env=environ() | meeting) as worker:
        wait_for(lambda: read(told.heartbeat(rank)), "its pulse")
        worker.terminate()
        assert worker.wait(timeout=LIMIT_S) == 75
    assert not (tmp_path / "run").exists()


def test_a_rank_that_waits_at_torchrun_s_store_hears_a_stop(tmp_path: Path) -> None:
    """Under torchrun the ranks meet at its agent's store; in torch's own wait for them no signal is heard."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    meeting = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    meeting |= {"RANK": "0", "LOCAL_RANK": "0", "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "2"}
    argv = [sys.executable, "-m", "harness", str(run_file(tmp_path, "total: 8"))]
    with subprocess.Popen(argv, env=environ() | meeting) as worker:
        wait_for(lambda: store.add("/worker/attempt_2/ranks that have connected", 0), "its word that it is here")
        worker.terminate()
        assert worker.wait(timeout=1200) == 75


def test_one_node_needs_no_interface() -> None:
    assert interface({}, cpu=True) is None
    assert interface(TWO_NODES | {"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "198.51.100.1"}, cpu=True) is None


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


def test_ranks_of_one_host_talk_over_its_loopback_interface_unless_another_is_asked_for() -> None:
    two = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": "1"}
    assert interface({}, cpu=True) is None
    assert interface(two | {"MASTER_ADDR": "127.0.0.1"}, cpu=True) == "lo"
    assert interface(two | {"MASTER_ADDR": "localhost"}, cpu=False) == "lo"
    assert interface(two | {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "eth7"}, cpu=True) == "eth7"


@pytest.mark.parametrize(("address", "where"), [("127.0.0.1", "lo"), ("0.0.0.0", "every interface"), ("::", "every interface")])  # noqa: S104
def test_where_a_process_listens_is_read_from_the_kernel(address: str, where: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as server, socket.socket(family) as silent:
        server.bind((address, 0))
        silent.bind((address, 0))
        server.listen()
        shown = "*" if where == "every interface" else address
        assert f"{shown}:{server.getsockname()[1]} ({where})" in listening([os.getpid()])
        assert not any(f":{silent.getsockname()[1]} " in line for line in listening([os.getpid()]))
