"""A run on several hosts without a scheduler: the same command on each, and torchrun's rendezvous to bring them together.

Hosts may come and go between the fewest and the most that `--nodes` allows: the ranks that are there then plan for their world.
"""

import argparse
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from harness.config.allowed_names import checked
from harness.config.errors import UserError
from harness.config.run_folder import RunFolder
from harness.config.schema import Config
from harness.plan.plan import plan
from harness.plan.world import World
from launch.cluster.allowed_names import HOST, WORD, checked_path
from launch.processes.command import Command, device_environ

JOIN_S = 600
"""How long hosts wait for each other."""
CONF = f"last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=10,join_timeout={JOIN_S}"
"""torchrun's rendezvous: a host that is gone is known to be after 10 s; less would take a busy host for a lost one."""
SHUTDOWN_S = 300
"""How long ranks that are asked to stop may take to write their checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """Where the hosts meet, and by which address and interface this one is known to the others."""

    host: str
    port: int
    address: str
    interface: str | None
    fewest: int
    restarts: int = 10
    """How often failed ranks are started again."""


def add_hosts(parser: argparse.ArgumentParser) -> None:
    """The flags of this file."""
    group = parser.add_argument_group("several hosts")
    where = "start this host's part of a run on several: the same command on each, HOST being one of them and PORT free there"
    group.add_argument("--rendezvous", metavar="HOST:PORT", help=where)
    interface = "network interface of the ranks' traffic (default: the one that leads to the rendezvous host)"
    group.add_argument("--interface", metavar="NAME", help=interface)


def meeting(rendezvous: str | None, interface: str | None, fewest: int, run_dir: str | None) -> Meeting:
    """The flags, checked, and this host's address on the way there. Raises UserError."""
    if rendezvous is None:
        raise UserError("--nodes", "more than 1, and this starts processes on this machine only", "give --rendezvous, or --slurm")
    if run_dir is None:
        raise UserError(
            "run.dir", "not set, and every host must name the same folder", "give --run.dir, on a disk that all hosts share"
        )
    host, _, port = rendezvous.rpartition(":")
    remedy = "write HOST:PORT such as node1:29400"
    checked("--rendezvous", host, HOST, remedy)
    if re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) is None or not 0 < int(port) < 2**16:
        raise UserError("--rendezvous", f"is {rendezvous!r}", remedy)
    if interface is not None:
        checked("--interface", interface, WORD, "give the name that `ip link` shows")
    from ipaddress import ip_address

    from harness.distributed.network_interface import loopback, toward

    address, found = toward(host.strip("[]"), interface, setting="--rendezvous")
    if ip_address(address).is_loopback:
        raise loopback(host.strip("[]"), setting="--rendezvous")
    return Meeting(host=host, port=int(port), address=address, interface=found, fewest=fewest)


def hosts_command(python: str, folder: Path, world: World, at: Meeting, *, asked: bool) -> Command:
    """torchrun for this host's part of the run in `folder`. `asked`: the interface is the user's wish, so NCCL takes it too.

    The workers' store is not the agents': with a shared one, ranks that start again may read addresses of those that are gone.
    """
    per_node, run = world.size // world.nodes, RunFolder(Path(checked_path("run.dir", folder)))
    nodes, ranks = f"{world.nodes}", f"{world.size}"
    if at.fewest < world.nodes:
        nodes, ranks = f"{at.fewest}:{nodes}", f"{at.fewest * per_node}:{ranks}"
    argv = (
        python, "-m", "torch.distributed.run", "--nnodes", nodes, "--nproc-per-node", str(per_node),
        "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{at.host}:{at.port}", "--rdzv-id", folder.name, "--rdzv-conf", CONF,
        "--local-addr", at.address, "--max-restarts", str(at.restarts), "--monitor-interval", "0.1",
        "--shutdown-timeout", str(SHUTDOWN_S), "--log-dir", str(run.torchrun_logs),
        "-m", "harness", str(run.run_file), "--no-plan", "--ranks", ranks,
    )  # fmt: skip
    environ = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    if at.interface is not None:
        environ["GLOO_SOCKET_IFNAME"] = at.interface
        if asked:
            environ["NCCL_SOCKET_IFNAME"] = at.interface
    return Command(argv, environ | device_environ(world))


def host_logs(folder: Path) -> Path:
    """Where this host's ranks, of the run in `folder`, write their logs; and where its launcher is locked."""
    return RunFolder(folder).logs / os.uname().nodename


def smaller_worlds(world: World, fewest: int) -> Iterator[World]:
    """The worlds that are left when hosts go, the largest first."""
    for nodes in range(world.nodes - 1, fewest - 1, -1):
        yield replace(world, size=world.size // world.nodes * nodes, nodes=nodes)


def check_worlds(config: Config, world: World, fewest: int, size: int | None) -> None:
    """Raises UserError if the run cannot be planned for one of the worlds that it may find itself in."""
    for smaller in smaller_worlds(world, fewest):
        try:
            plan(config, smaller, size)
        except UserError as e:
            at = f"with {smaller.nodes} nodes {smaller.size} ranks are left, and {e.problem}"
            raise UserError(e.setting, at, f"{e.remedy}; or give fewer choices of --nodes, or batch.per_gpu") from e
