"""The world a run is planned for, and how a process learns its place in it. The environment is an argument."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from harness.config.errors import UserError

Device = Literal["cpu", "gpu"]


@dataclass(frozen=True)
class World:
    """`size` data-parallel ranks on `nodes` nodes. Raises UserError where they do not split evenly over nodes or `processes`."""

    size: int
    """Ranks over all nodes."""
    nodes: int = 1
    device: Device = "gpu"
    """What each rank computes on: "gpu" or "cpu"."""
    processes: int | None = None
    """Processes that run the ranks, fewer than `size` where they are simulated. None: as many as ranks."""

    def __post_init__(self) -> None:
        """Raises UserError for a world that cannot be."""
        if self.size < 1:
            raise UserError("--gpus", f"is {self.size}", "give at least 1, or --gpus 0 --procs N for CPU ranks")
        if self.nodes < 1:
            raise UserError("--nodes", f"is {self.nodes}", "give at least 1")
        if self.size % self.nodes:
            at = f"{self.size} ranks do not split over {self.nodes} nodes"
            raise UserError("--nodes", at, f"give a number of ranks that is a multiple of {self.nodes}")
        if self.size % self.run_by:
            at = f"{self.size} ranks do not split over {self.run_by} processes"
            raise UserError("--simulate-world", at, f"give a multiple of {self.run_by}")

    @property
    def run_by(self) -> int:
        """Number of processes that run the ranks."""
        return self.processes or self.size

    @property
    def simulated(self) -> bool:
        """Whether a process simulates several ranks, one after the other."""
        return self.run_by != self.size


@dataclass(frozen=True)
class Place:
    """Where a process stands: its rank among all and on its node, of how many, on how many nodes."""

    rank: int
    local_rank: int
    size: int
    nodes: int


DEVICE = "WIDEBATCH_DEVICE"
"""The variable by which our launchers say that a rank was planned for a GPU."""


def cpu_requested(environ: Mapping[str, str]) -> bool:
    """Whether ranks were asked to compute on the CPU; accelerate reads the same variable."""
    return environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")


ALONE = Place(0, 0, 1, 1)
"""The place of a process without a launcher."""


def place(environ: Mapping[str, str]) -> Place:
    """This process's place, by the variables of torchrun, accelerate launch or deepspeed. A process without a launcher is alone.

    Raises UserError for numbers that cannot be.
    """
    if "RANK" not in environ:
        return ALONE
    rank, size = _count(environ, "RANK", "0"), _count(environ, "WORLD_SIZE", "1")
    local_rank = _count(environ, "LOCAL_RANK", "0")
    local = _count(environ, "LOCAL_WORLD_SIZE", environ.get("LOCAL_SIZE") or str(size))
    for name, number, several, of in (
        ("RANK", rank, "WORLD_SIZE", size),
        ("LOCAL_RANK", local_rank, "LOCAL_WORLD_SIZE", local),
        ("LOCAL_WORLD_SIZE", local - 1, "WORLD_SIZE", size),
    ):
        if number >= of:
            at = f"is {environ.get(name, number)}, and {several} is {of}"
            raise UserError(name, at, f"start the ranks by a launcher, or unset {name} {several} and all others of ranks")
    return Place(rank, local_rank, size, max(size // local, 1))


def _count(environ: Mapping[str, str], name: str, unset: str) -> int:
    text = environ.get(name) or unset
    if not (text.isascii() and text.isdecimal()):
        raise UserError(name, f"is {text!r}, no whole number", f"unset {name}, or start the ranks by a launcher")
    return int(text)


def check_world(here: Place, expected: str) -> None:
    """Raises UserError if this is not the world the launcher meant: `8` ranks, or `2:8` of them."""
    low, _, high = expected.partition(":")
    if not int(low) <= here.size <= int(high or low):
        at = f"planned for {expected} ranks, but this process finds {here.size}"
        raise UserError("world", at, "the processes did not find each other: check the launcher's number of processes and nodes")
