"""What `widebatch launch` tells the ranks it starts, in one variable of their environment."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

from harness.plan.world import Place

VARIABLE = "WIDEBATCH_LAUNCHED"


@final
@dataclass(frozen=True)
class Launched:
    """By which process, with which folder for logs and pulses, and where rank 0's output goes (a FIFO or a terminal).

    `cause` says why the ranks were started again; empty at the first start. `several`: this is one of several launchers, each of
    which knows the ranks of its own host, by their rank on it.
    """

    launcher: int
    logs: str
    output: str
    cause: str = ""
    several: bool = False

    def own(self, here: Place) -> int:
        """The rank by which this launcher knows a process."""
        return here.local_rank if self.several else here.rank

    def environ(self) -> dict[str, str]:
        """The variable that says it."""
        return {VARIABLE: json.dumps(asdict(self))}

    def log(self, rank: int) -> Path:
        """Where a rank's output is kept."""
        return Path(self.logs) / f"rank-{rank}.log"

    def error(self, rank: int) -> Path:
        """Where a rank that fails leaves its traceback."""
        return Path(self.logs) / f"rank-{rank}.error"

    def pulse(self, rank: int) -> Path:
        """Where a rank's pulse is."""
        return Path(self.logs) / f"rank-{rank}.pulse"


def launched(environ: Mapping[str, str]) -> Launched | None:
    """What our launcher said; None where another started this process."""
    return Launched(**json.loads(environ[VARIABLE])) if VARIABLE in environ else None
