"""What `widebatch launch` tells the ranks it starts, in one variable of their environment."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import final

from harness.plan.world import Place

VARIABLE = "WIDEBATCH_LAUNCHED"


@final
@dataclass(frozen=True)
class Launched:
    """The launching process, the folder for logs and heartbeats, and where rank 0's output goes (a pipe or a terminal).

    `cause` says why the ranks were started again; empty at the first start. `several`: this is one of several launchers, each of
    which knows the ranks of its own host, by their rank on it. `pulses` and `errors` are descriptors of the launcher, one a rank.
    `in_place`: a rank that is killed is to be done without.
    """

    launcher: int
    logs: str
    output: str
    cause: str = ""
    several: bool = False
    pulses: list[int] = field(default_factory=list)
    errors: list[int] = field(default_factory=list)
    in_place: bool = False

    def own(self, here: Place) -> int:
        """The rank by which this launcher knows a process."""
        return here.local_rank if self.several else here.rank

    def environ(self) -> dict[str, str]:
        """The environment variable with these values."""
        return {VARIABLE: json.dumps(asdict(self))}

    def log(self, rank: int) -> Path:
        """Where a rank's output is kept."""
        return Path(self.logs) / f"rank-{rank}.log"

    def error(self, rank: int) -> Path:
        """Where a rank that fails leaves its traceback, empty before."""
        return Path(f"/proc/{self.launcher}/fd/{self.errors[rank]}")

    def heartbeat(self, rank: int) -> Path:
        """Where a rank's heartbeat is."""
        return Path(f"/proc/{self.launcher}/fd/{self.pulses[rank]}")

    def clear(self) -> None:
        """Called by the launcher: clear what the ranks of an earlier start have left."""
        for file in (*self.pulses, *self.errors):
            os.ftruncate(file, 0)


def memory_files(ranks: int) -> list[int]:
    """Descriptors of a file in memory for each rank: a full disk or a renamed folder does not separate launcher and ranks."""
    return [os.memfd_create(f"rank-{rank}") for rank in range(ranks)]


def launched(environ: Mapping[str, str]) -> Launched | None:
    """What our launcher passed on; None if another launcher started this process."""
    return Launched(**json.loads(environ[VARIABLE])) if VARIABLE in environ else None
