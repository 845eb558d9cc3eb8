"""The world a run is planned for, and how a process learns its place in it. The environment is an argument."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from harness.plan.errors import UserError

Device = Literal["cpu", "gpu"]


@dataclass(frozen=True)
class World:
    """`size` data-parallel ranks on `nodes` nodes, run by `processes` processes (fewer than `size` when simulated)."""

    size: int
    nodes: int = 1
    device: Device = "gpu"
    processes: int | None = None

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
        """Whether a process plays several ranks in turn."""
        return self.run_by != self.size


@dataclass(frozen=True)
class Place:
    """Where a process stands: its rank among all and on its node, of how many, on how many nodes."""

    rank: int
    local_rank: int
    size: int
    nodes: int


ALONE = Place(0, 0, 1, 1)
"""Of a process that nobody started."""


def place(environ: Mapping[str, str]) -> Place:
    """This process's place, by the variables of torchrun, accelerate launch or deepspeed. One that nobody started is alone."""
    if "RANK" not in environ:
        return ALONE
    size = int(environ.get("WORLD_SIZE", "1"))
    local = int(environ.get("LOCAL_WORLD_SIZE") or environ.get("LOCAL_SIZE") or size)
    return Place(int(environ["RANK"]), int(environ.get("LOCAL_RANK", "0")), size, max(size // local, 1))


def check_world(here: Place, expected: str) -> None:
    """Raises UserError where this is not the world the launcher meant: `8` ranks, or `2:8` of them."""
    low, _, high = expected.partition(":")
    if not int(low) <= here.size <= int(high or low):
        at = f"planned for {expected} ranks, but this process finds {here.size}"
        raise UserError("world", at, "the processes did not find each other: check the launcher's number of processes and nodes")
