"""What a machine must have for a run, judged: each fact is ok, a warning or a failure, with the remedy. Pure; others measure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["ok", "warn", "fail"]
GIB = 2.0**30
LEAST_SHM, LEAST_FREE, LEAST_FILES = 1 * GIB, 10 * GIB, 4096
LEAST_DISK_MB_S = 100.0
CLOCK_S = 1.0
"""The largest difference of two hosts' clocks, in seconds, that is not reported."""
LEAST_BUS_GB_S = {"within": 5.0, "between": 1.0}
"""Bus bandwidth of GPUs below which something is likely set wrong: within a node (PCIe without peer-to-peer), and between nodes
(TCP over the wrong interface)."""


@dataclass(frozen=True)
class Finding:
    """The result of one check: what was `found`, and the `remedy` where it is not ok."""

    name: str
    status: Status
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Lap:
    """An all-reduce of `size` bytes over all ranks, in seconds on the slowest."""

    size: int
    seconds: float

    def bus_gb_s(self, ranks: int) -> float:
        """Bus bandwidth as nccl-tests define it: what each rank's link carries, 2 (n - 1) / n of the size, in 10^9 bytes/s."""
        return 2 * (ranks - 1) / ranks * self.size / self.seconds / 1e9


def versions(packages: Sequence[tuple[str, str, str | None, bool]]) -> list[Finding]:
    """(name, what is tested, what is installed, whether that fits) of each package."""
    wrong = [
        Finding("versions", "fail", f"{name} {here or 'is missing'}, tested with {name}{wanted}", f"pip install '{name}{wanted}'")
        for name, wanted, here, fits in packages
        if not fits
    ]
    told = ", ".join(f"{name} {here}" for name, _, here, _ in packages if name in ("torch", "accelerate", "deepspeed", "wandb"))
    return wrong or [Finding("versions", "ok", told)]


def gpus(listed: int, seen: Sequence[str], cuda: str | None) -> Finding:
    """GPUs that the driver lists, and those that torch can use."""
    if len(seen) < listed:
        at = f"nvidia-smi lists {listed}, torch {f'(CUDA {cuda})' if cuda else '(built for CPUs)'} sees {len(seen)}"
        remedy = "install torch for CUDA" if cuda is None else "update the NVIDIA driver to one that supports this CUDA version"
        return Finding("gpus", "fail", at, remedy)
    if not seen:
        return Finding("gpus", "warn", "none: runs here use CPU ranks", "try a run with --gpus 0 --procs N")
    kinds = ", ".join(f"{seen.count(kind)} x {kind}" for kind in sorted(set(seen)))
    mixed = len(set(seen)) > 1
    return Finding("gpus", "warn" if mixed else "ok", kinds, "all wait for the slowest: use GPUs of one kind" if mixed else "")


def collectives(gpu_count: int, nccl: str | None, gloo: bool) -> Finding:
    """The backends of collectives that torch has."""
    if gpu_count and nccl is None:
        return Finding("collectives", "fail", "torch has no NCCL", "install torch for CUDA on Linux")
    if not gloo:
        return Finding("collectives", "fail", "torch has no gloo", "install an official build of torch")
    return Finding("collectives", "ok", f"NCCL {nccl}, gloo" if nccl else "gloo")


def shared_memory(size: float | None) -> Finding:
    """`size` of /dev/shm in bytes; data workers and NCCL pass tensors through it."""
    remedy = "docker: --shm-size=8g; Kubernetes: an emptyDir of medium Memory at /dev/shm"
    if size is None:
        return Finding("shared memory", "fail", "there is no /dev/shm", remedy)
    return Finding(
        "shared memory", "ok" if size >= LEAST_SHM else "warn", f"{size / GIB:.2f} GiB", remedy if size < LEAST_SHM else ""
    )


def limits(files: float, locked: float, infiniband: bool) -> Finding:
    """Limits of a process: open files, and locked memory in bytes where InfiniBand registers its buffers."""
    told = f"{files:.0f} open files"
    if files < LEAST_FILES:
        return Finding("limits", "warn", told, f"ulimit -n {LEAST_FILES * 16}, or LimitNOFILE in the service")
    if infiniband and locked < LEAST_FREE:
        return Finding("limits", "warn", f"InfiniBand, but {locked / 2**20:.0f} MiB of locked memory", "ulimit -l unlimited")
    return Finding("limits", "ok", told)


def cores(here: float, ranks: int) -> Finding:
    """Whether the CPU cores that this process may use suffice for the ranks of this machine."""
    told = f"{here:g} for {ranks} rank{'s' if ranks > 1 else ''}"
    if here < ranks:
        return Finding("cpu cores", "warn", told, "ranks will wait for each other's data: ask for more cores, 2 or more a rank")
    return Finding("cpu cores", "ok", told)


def address(name: str, found: str | None, port: int | None, port_free: bool) -> Finding:
    """This host's name and address, and the rendezvous port that the environment names, if it does."""
    if not port_free:
        return Finding("ports", "fail", f"MASTER_PORT {port} is in use", "choose another, or end what holds it")
    if found is None:
        return Finding("ports", "warn", f"{name} has no address", "gloo resolves it: add the host to /etc/hosts")
    if found.startswith("127."):
        remedy = "for several hosts set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the interface between them"
        return Finding("ports", "warn", f"{name} is {found}, which other hosts cannot reach", remedy)
    return Finding("ports", "ok", f"{name} is {found}")


def listens(ranks: Sequence[str], launcher: Sequence[str]) -> Finding:
    """Where rank 0 and the process that started it take connections: gloo's and the store's ports are the kernel's choice."""
    told = f"rank 0 on {', '.join(ranks) or 'no port'}; its launcher on {', '.join(launcher) or 'no port'}"
    everywhere = any("every interface" in where for where in [*ranks, *launcher])
    return Finding("listens", "ok", told + "; torch asks for no password: trusted networks only" * everywhere)


def clock(spread_s: float, ahead_of_install_s: float) -> Finding:
    """Clocks: `spread_s` between the ranks' hosts, and how long ago this software was installed by this host's clock."""
    if ahead_of_install_s < 0:
        at = "this host's clock is before the day this was installed"
        return Finding("clock", "fail", at, "set it, or certificates will not verify: start chrony or ntpd")
    if spread_s > CLOCK_S:
        return Finding("clock", "warn", f"{spread_s:.1f} s between the ranks", "start chrony or ntpd on every host")
    return Finding("clock", "ok", f"{spread_s * 1e3:.0f} ms between the ranks")


def disk(folder: str, mb_s: float | None, free: float, problem: str = "") -> Finding:
    """Where runs will be written: speed of a synced write, and room."""
    if mb_s is None:
        return Finding("disk", "fail", f"{folder}: {problem}", "give another folder with --dir, or run.dir in the run file")
    told = f"{mb_s:,.0f} MB/s, {free / GIB:,.1f} GiB free in {folder}"
    if free < LEAST_FREE:
        return Finding("disk", "warn", told, "a full disk loses checkpoints: make room, or lower checkpoint.keep")
    if mb_s < LEAST_DISK_MB_S:
        return Finding("disk", "warn", told, "checkpoints will be slow: save seldom, or use a local disk")
    return Finding("disk", "ok", told)


def wandb(problem: str, key: bool) -> Finding:
    """Whether Weights & Biases answers, and whether there is a key for it."""
    if problem:
        return Finding("wandb", "warn", f"out of reach: {problem}", "watch.wandb: offline, and `wandb sync` from elsewhere")
    if not key:
        return Finding("wandb", "warn", "answers, but there is no key", "`wandb login`, or WANDB_API_KEY in the environment")
    return Finding("wandb", "ok", "answers, and there is a key")


def operators(built: bool, stale: Sequence[str], compiler: bool, gpu_count: int) -> Finding:
    """DeepSpeed's own operators: only its CPU ranks need any."""
    if stale:
        at = f"{stale[0]}, left by a build that was killed, blocks every later build"
        return Finding("deepspeed", "fail", at, f"rm {stale[0]}")
    if built:
        return Finding("deepspeed", "ok", "operators for CPU ranks are built")
    if gpu_count:
        return Finding("deepspeed", "ok", "no operator is needed on GPUs")
    if not compiler:
        return Finding(
            "deepspeed", "warn", "zero0 to zero3 on CPU ranks need a C++ compiler", "apt-get install g++, or use ddp or fsdp"
        )
    return Finding("deepspeed", "ok", "operators for CPU ranks will be built at first use, in about a minute")


def bandwidth(laps: Sequence[Lap], ranks: int, nodes: int, gpu: bool, right: bool) -> Finding:
    """What the all-reduce measured, and whether its sums were `right`."""
    if not right:
        at = f"sums over {ranks} ranks were wrong"
        return Finding("all-reduce", "fail", at, "do not train here: test the GPUs and the network (dcgmi diag, nccl-tests)")
    best = max(lap.bus_gb_s(ranks) for lap in laps)
    where = "between" if nodes > 1 else "within"
    told = f"{best:.2f} GB/s on the bus over {ranks} ranks, {min(lap.seconds for lap in laps) * 1e6:.0f} us at least"
    if gpu and best < LEAST_BUS_GB_S[where]:
        remedy = "run with NCCL_DEBUG=INFO and check: " + (
            "NCCL_SOCKET_IFNAME, InfiniBand" if nodes > 1 else "`nvidia-smi topo -m`, NCCL_P2P_DISABLE"
        )
        return Finding("all-reduce", "warn", told, remedy)
    return Finding("all-reduce", "ok", told)


def lines(findings: Sequence[Finding], laps: Sequence[Lap], ranks: int) -> list[str]:
    """The findings as text: a line for each, its remedy under it, then the table of the all-reduce."""
    out = []
    for f in findings:
        out.append(f"{f.status:<5}{f.name:<15}{f.found}")
        if f.remedy:
            out.append(f"{'':<20}-> {f.remedy}")
    if laps:
        out.append(f"\n{'all-reduce':>12}{'time':>12}{'bus GB/s':>10}")
        out += [f"{lap.size:>10,} B{lap.seconds * 1e6:>9,.0f} us{lap.bus_gb_s(ranks):>10.3f}" for lap in laps]
    return out


def as_json(findings: Sequence[Finding], laps: Sequence[Lap], ranks: int) -> dict[str, Any]:
    """The findings as JSON, for other programs."""
    measured = [{"bytes": lap.size, "seconds": lap.seconds, "bus_gb_per_s": lap.bus_gb_s(ranks)} for lap in laps]
    return {"ok": all(f.status != "fail" for f in findings), "checks": [vars(f) for f in findings], "all_reduce": measured}
