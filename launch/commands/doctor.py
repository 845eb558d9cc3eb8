"""widebatch doctor: what this machine lacks for a run, with the remedy, and how fast its ranks add their gradients."""

import json
import os
import resource
import socket
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from harness.config.errors import UserError
from harness.config.flags import Parser
from harness.supervision.output_redirect import echo
from harness.supervision.temporary_folders import temporary_folder
from launch.options.commands import COMMANDS
from launch.options.out_option import local_path
from launch.processes.command import Command
from launch.processes.spawn import gpu_count, output

DISK_BYTES = 64 << 20
STARTED_S = 600.0
"""Seconds that starting the ranks may take, in addition to those of the measurement."""


def main(argv: Sequence[str]) -> int:
    """Status 0, or 1 where something fails. Raises UserError."""
    parser = Parser(prog="widebatch doctor", description=COMMANDS["doctor"], allow_abbrev=False)
    parser.add_argument(
        "--gpus", type=int, help="GPUs to measure the all-reduce over (default: those of this machine); 0: CPU ranks"
    )
    parser.add_argument("--procs", type=int, default=1, help="CPU ranks, with --gpus 0 or without GPUs")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long the all-reduces may take together (default: 10)")
    parser.add_argument(
        "--dir", type=local_path("--dir"), default=Path(), help="where runs will be written, for the speed of the disk"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, for other programs")
    args = parser.parse_args(argv)
    here = gpu_count(os.environ.get("CUDA_VISIBLE_DEVICES"))
    ranks, gpu = _ranks(args, here)
    from harness.analysis import machine_checks as machine

    facts = _checkup(ranks, gpu, args.seconds)
    findings = [*machine.versions(installed()), *_findings(facts, here if gpu else 0, ranks, args.dir)]
    laps = [machine.Lap(*lap) for lap in facts["laps"]]
    if laps:
        findings.append(machine.bandwidth(laps, ranks, facts["nodes"], gpu, facts["right"]))
    told = machine.as_json(findings, laps, ranks)
    echo(json.dumps(told, indent=1) if args.json else "\n".join(machine.lines(findings, laps, ranks)))
    if not laps and not args.json:
        echo("\none rank: no all-reduce to measure; give --procs 2 or more")
    return 0 if told["ok"] else 1


def _ranks(args: Namespace, here: int) -> tuple[int, bool]:
    """(ranks, whether they are GPUs). Raises UserError."""
    gpus = here if args.gpus is None else args.gpus
    if gpus > here:
        raise UserError("--gpus", f"{gpus} asked for, {here} here", "ask for fewer, or use --gpus 0 --procs N")
    for flag, number, least in (("--gpus", gpus, 0), ("--procs", args.procs, 1), ("--seconds", args.seconds, 0.1)):
        if number < least:
            raise UserError(flag, f"is {number}", f"give at least {least}")
    return (gpus, True) if gpus else (args.procs, False)


def _checkup(ranks: int, gpu: bool, seconds: float) -> dict[str, Any]:
    """What real ranks find. Raises UserError if they do not come to an end."""
    with temporary_folder("widebatch-doctor-") as folder:
        out = folder / "facts.json"
        said = output(checkup_command(sys.executable, str(out), ranks, gpu, seconds), seconds + STARTED_S)
        if not out.exists():
            last = next((line for line in reversed(said.splitlines()) if "Error" in line), said.strip()[-200:])
            raise UserError("doctor", f"{ranks} ranks did not finish their checkup ({last})", "run it with one rank to compare")
        facts: dict[str, Any] = json.loads(out.read_text())
    return facts


def checkup_command(python: str, out: str, ranks: int, gpu: bool, seconds: float) -> Command:
    """The ranks under torchrun; one alone needs no launcher."""
    start: tuple[str, ...] = (python,)
    if ranks > 1:
        logs = str(Path(out).parent / "torchrun")
        start += ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks), "--log-dir", logs)
    environ = {} if gpu else {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return Command((*start, "-m", "harness.tools.rank_checks", "--out", out, "--seconds", f"{seconds:g}"), environ)


def _findings(facts: Mapping[str, Any], here: int, ranks: int, folder: Path) -> list[Any]:
    """Everything but the versions and the bandwidth."""
    from harness.analysis import machine_checks as machine

    name, found, port, free = _address()
    files, locked = (resource.getrlimit(limit)[0] for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_MEMLOCK))
    unlimited = float("inf")
    built = facts["operators_built"], facts["stale_locks"], facts["compiler"], here
    return [
        machine.gpus(here, facts["gpus"], facts["cuda"]),
        machine.collectives(here, facts["nccl"], facts["gloo"]),
        machine.shared_memory(_size(Path("/dev/shm"))),  # noqa: S108  looked at, not written to
        machine.limits(
            unlimited if files == resource.RLIM_INFINITY else files,
            unlimited if locked == resource.RLIM_INFINITY else locked,
            any(Path("/sys/class/infiniband").glob("*")),
        ),
        machine.cores(_cores(Path("/sys/fs/cgroup")), ranks),
        machine.address(name, found, port, free),
        *([machine.listens(facts["ranks_listen"], facts["launcher_listens"])] if "ranks_listen" in facts else []),
        machine.clock(facts["clock_spread_s"], time.time() - Path(__file__).stat().st_mtime),
        _disk(folder),
        machine.wandb(facts["wandb_problem"], facts["wandb_key"]),
        machine.operators(*built),
    ]


def installed() -> list[tuple[str, str, str | None, bool]]:
    """(name, range that is tested, version here, whether it fits) of what widebatch requires, as its own package says."""
    from packaging.requirements import Requirement

    rows = []
    for text in requires("widebatch") or []:
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            here = version(wanted.name)
        except PackageNotFoundError:
            here = None
        rows.append(
            (wanted.name, str(wanted.specifier), here, here is not None and wanted.specifier.contains(here, prereleases=True))
        )
    return rows


def _size(folder: Path) -> float | None:
    """Bytes of the file system at `folder`, None if there is none."""
    if not folder.is_dir():
        return None
    held = os.statvfs(folder)
    return float(held.f_blocks * held.f_frsize)


def _cores(groups: Path) -> float:
    """CPU cores this process may use: by its mask, and by the quota of its control group, as containers have one."""
    cores = float(len(os.sched_getaffinity(0)))
    for file in (groups / "cpu.max", groups / "cpu" / "cpu.cfs_quota_us"):
        try:
            words = file.read_text().split()
            period = words[1] if len(words) > 1 else (file.parent / "cpu.cfs_period_us").read_text()
        except OSError:
            continue
        if words[0] not in ("max", "-1"):
            cores = min(cores, int(words[0]) / int(period))
    return cores


def _address() -> tuple[str, str | None, int | None, bool]:
    """(name of this host, its address, MASTER_PORT if set, whether that port is free here)."""
    name = socket.gethostname()
    try:
        found = socket.gethostbyname(name)
    except OSError:
        found = None
    port = os.environ.get("MASTER_PORT", "")
    if not port.isdigit():
        return name, found, None, True
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", int(port)))
        except (OSError, OverflowError):
            return name, found, int(port), False
    return name, found, int(port), True


def _disk(folder: Path) -> Any:
    """Write, sync and remove a file."""
    from harness.analysis import machine_checks as machine

    block = os.urandom(1 << 20)
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".widebatch-doctor-") as file:
            begin = time.perf_counter()
            for _ in range(DISK_BYTES // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            seconds = time.perf_counter() - begin
        held = os.statvfs(folder)
    except OSError as e:
        return machine.disk(str(folder.absolute()), None, 0.0, e.strerror or str(e))
    return machine.disk(str(folder.absolute()), DISK_BYTES / seconds / 1e6, float(held.f_bavail * held.f_frsize))
