"""A throw-away Slurm cluster on this host, for tests: munged, slurmctld and a slurmd for each virtual node, all real.

No systemd and no cgroups. GPUs are counted, not there. Every node is a host of tests.cluster.hosts.
"""

import os
import secrets
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.cluster import hosts as hosts_module
from tests.cluster.hosts import NET, Hosts
from tests.support.processes import LIMIT_S, environ

TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
CPUS, GPUS = 4, 2
"""What each node says it has."""


def missing() -> str:
    """Why there can be no cluster here, or nothing."""
    gone = [tool for tool in TOOLS if shutil.which(tool) is None]
    if gone:
        return f"needs Slurm ({', '.join(gone)} not found: apt-get install slurm-wlm munge)"
    return hosts_module.missing()


def wait_until(what: Callable[[], Any], why: str, limit_s: float = LIMIT_S) -> Any:
    """Ask until the answer is true, and return it."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        found = what()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {limit_s} s for {why}")


class Cluster:
    """Nodes n1, n2, ... in one partition, each a host of its own; the controller runs on n1. Client commands go through `ask`."""

    def __init__(self, folder: Path, hosts: Hosts) -> None:
        self.folder, self.hosts = folder, hosts
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._hurried: set[tuple[str, str]] = set()
        for name in ("state", "spool", "log", "munge"):
            (folder / name).mkdir()
        (folder / "munge").chmod(0o700)
        key = folder / "munge" / "key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        for i in range(GPUS):
            os.mknod(folder / f"gpu{i}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))  # /dev/null will do
        (folder / "slurm.conf").write_text(self._conf())
        (folder / "gres.conf").write_text(f"NodeName=n[1-{hosts.count}] Name=gpu File={folder}/gpu[0-{GPUS - 1}]\n")
        (folder / "cgroup.conf").write_text("")
        self.environ = environ() | {"SLURM_CONF": str(folder / "slurm.conf")}

    def _conf(self) -> str:
        at = self.folder
        options = f"""
            ClusterName=test SlurmctldHost=n1({NET}.1) SlurmUser=root SlurmdUser=root
            AuthType=auth/munge AuthInfo=socket={at}/munge/socket CredType=cred/munge MpiDefault=none
            StateSaveLocation={at}/state SlurmdSpoolDir={at}/spool/%n
            SlurmctldPidFile={at}/slurmctld.pid SlurmdPidFile={at}/slurmd.%n.pid
            ProctrackType=proctrack/linuxproc TaskPlugin=task/none JobAcctGatherType=jobacct_gather/none
            AccountingStorageType=accounting_storage/none SelectType=select/cons_tres SelectTypeParameters=CR_Core
            SlurmdParameters=config_overrides SchedulerType=sched/backfill
            SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
            PreemptType=preempt/partition_prio PreemptMode=REQUEUE
            ReturnToService=2 KillWait=20 SlurmdTimeout=30 GresTypes=gpu PropagateResourceLimits=NONE
        """.split()
        nodes = (
            f"NodeName=n[1-{self.hosts.count}] NodeAddr={NET}.[1-{self.hosts.count}] CPUs={CPUS} RealMemory=2000 Gres=gpu:{GPUS}"
        )
        partitions = [
            "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1",
            "PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=9",
        ]
        return "\n".join([*options, nodes, *partitions, ""])

    def __enter__(self) -> "Cluster":
        munge, at = self.folder / "munge", self.folder
        with ExitStack() as stack:
            stack.callback(self._down)
            files = [f"--key-file={munge}/key", f"--socket={munge}/socket", f"--pid-file={munge}/pid", f"--seed-file={munge}/seed"]
            self._start("munged", 1, ["munged", "--foreground", "--force", *files, f"--log-file={at}/log/munged"])
            wait_until((munge / "socket").exists, "munged")
            self._start("slurmctld", 1, ["slurmctld", "-D", "-c"])
            for i in range(1, self.hosts.count + 1):
                self.start_node(i)
            wait_until(self._ready, "the nodes to be idle")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _down(self) -> None:
        """End the hosts, and with them everything that runs on them."""
        for i in range(1, self.hosts.count + 1):
            self.hosts.kill(i)
        for daemon in self.daemons.values():
            daemon.wait(timeout=LIMIT_S)

    def _ready(self) -> bool:
        return self._run(["sinfo", "-hN", "-p", "main", "-o", "%T"]).stdout.split() == ["idle"] * self.hosts.count

    def _start(self, name: str, host: int, argv: Sequence[str]) -> None:
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            self.daemons[name] = subprocess.Popen(self.hosts.inside(host, argv), env=self.environ, stdout=log, stderr=log)

    def start_node(self, number: int) -> None:
        """Start the slurmd of a node; one that was there before has been killed."""
        if f"n{number}" in self.daemons:
            self.daemons[f"n{number}"].wait(timeout=LIMIT_S)
        self._start(f"n{number}", number, ["slurmd", "-D", "-N", f"n{number}"])

    def _run(self, argv: Sequence[str], cwd: Path | None = None, limit_s: float = LIMIT_S) -> "subprocess.CompletedProcess[str]":
        inside = self.hosts.inside(1, argv)
        return subprocess.run(inside, env=self.environ, cwd=cwd, capture_output=True, text=True, timeout=limit_s, check=False)

    def urgent(self, folder: Path) -> str:
        """Submit a short job that takes all nodes from those of the default partition; its number."""
        script = folder / "urgent"
        script.write_text("#!/bin/sh\n")
        every = [f"--nodes={self.hosts.count}", "--exclusive", "--partition=urgent", f"--output={folder}/urgent.log"]
        return self.ask("sbatch", "--parsable", *every, str(script)).strip()

    def ask(self, *argv: str, cwd: Path | None = None, status: int = 0, limit_s: float = LIMIT_S) -> str:
        """What a command run on n1 prints; fails unless the exit status is `status`."""
        done = self._run(argv, cwd, limit_s)
        assert done.returncode == status, f"{argv} ended with {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def job(self, number: str) -> dict[str, str]:
        """What the controller knows about a job."""
        return dict(part.split("=", 1) for part in self.ask("scontrol", "-o", "show", "job", number).split() if "=" in part)

    def _steps(self) -> int:
        """Processes of Slurm, on all hosts, that belong to a job."""
        pids = [pid for i in range(1, self.hosts.count + 1) for pid in self.hosts.pids(i)]
        return sum(_name(pid) in ("srun", "slurmstepd", "slurm_script") for pid in pids)

    def wait_for(self, number: str, state: str, limit_s: float = LIMIT_S) -> dict[str, str]:
        """Wait for a job's state. The two minutes that Slurm lets a requeued job wait are cut short when nothing of it is left, but
        not to nothing: what ends the old steps would end the new ones, which have the same names."""

        def there() -> dict[str, str] | None:
            found = self.job(number)
            waits = found["JobState"] == "PENDING" and found["Reason"] == "BeginTime"
            if waits and (number, found["Restarts"]) not in self._hurried and not self._steps():
                self._hurried.add((number, found["Restarts"]))
                self._run(["scontrol", "update", f"jobid={number}", "StartTime=now+10"])
            return found if found["JobState"] == state else None

        try:
            found: dict[str, str] = wait_until(there, f"job {number} to be {state}", limit_s)
        except AssertionError as e:
            raise AssertionError(f"{e}: {self.job(number)}") from e
        return found


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
