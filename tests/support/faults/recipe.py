"""A recipe for tests of faults: it writes down which samples it was trained on, and does to itself what it is told to, once."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from harness.data.feed import Table
from harness.recipes.base import Recipe, Split, Sum
from tests.support.faults.clock import began_s


def _agent() -> int:
    """The process that starts the ranks; where ranks are to be done without, there is a seat between them."""
    parent = os.getppid()
    seat, own = (Path(f"/proc/{pid}/cmdline").read_bytes() for pid in (parent, os.getpid()))
    return int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1]) if seat == own else parent


PARENT = _agent()
"""As it was at the start: a rank whose launching process is killed gets another parent, and continues for a few steps."""
TIMES_S = (began_s(PARENT), began_s(os.getpid()), time.monotonic())
"""When that was started, when this, and when everything heavy was imported: the recipe comes after it."""
HUGE = 1 << 46
"""Bytes that no machine has."""


@dataclass(frozen=True)
class Traced(Recipe):
    """Linear regression on numbered samples. The ids of each pass are a line of `LOG/PARENT-RANK.ids`.

    `faults` is a list of KIND@PASS:RANK, separated by spaces, each done once in the life of `log` unless it ends in `!`: kill, stop
    (SIGSTOP), hang (a sleep), raise, memory (a real allocation that fails, at micro-batches larger than 2). PASS may be `eval`.
    """

    log: str
    size: int = 64
    faults: str = ""
    pace_ms: float = 0.0
    """Milliseconds that each pass takes at least, as long as there is no file `LOG/fast`."""
    slow_rank: int = -1
    slow_ms: float = 0.0
    """Milliseconds that each pass takes longer on one rank."""

    def model(self) -> nn.Module:
        """[n, 4] -> [n, 1]."""
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def data(self, split: Split) -> Table:
        """Columns id, x, y."""
        x = torch.randn(self.size, 4, generator=torch.Generator().manual_seed(1))
        return Table({"id": torch.arange(self.size), "x": x, "y": x.sum(1, keepdim=True)})

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """The first layer."""
        return [model[0]]  # type: ignore[index]

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Sum:
        """Squared error; in training the ids are written down, before the pass."""
        rank = os.environ.get("RANK", "0")
        path = Path(self.log) / f"{PARENT}-{rank}.ids"
        for fault in self.faults.split() if path.exists() and not torch.is_grad_enabled() else ():
            if fault.endswith(f"@eval:{rank}"):
                self._do(fault.partition("@")[0], fault, len(batch["id"]))
        if model.training:
            with path.open("a") as f:
                f.write(" ".join(str(i) for i in batch["id"].tolist()) + "\n")
            if self.faults:
                passes = len(path.read_text().splitlines())
                for fault in self.faults.split():
                    kind, _, where = fault.partition("@")
                    if where.rstrip("!") == f"{passes}:{rank}":
                        self._do(kind, fault, len(batch["id"]))
            if self.pace_ms and not (Path(self.log) / "fast").exists():
                time.sleep(self.pace_ms / 1000)
            if rank == str(self.slow_rank):
                time.sleep(self.slow_ms / 1000)
        return mse_loss(model(batch["x"]), batch["y"], reduction="sum"), len(batch["id"])

    def _do(self, kind: str, fault: str, size: int) -> None:
        if kind == "memory":
            if size > 2:
                torch.empty(HUGE, dtype=torch.uint8)
            return
        if not fault.endswith("!"):
            try:
                (Path(self.log) / f"{fault}.done").touch(exist_ok=False)
            except FileExistsError:
                return
        match kind:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "hang":
                time.sleep(3600)
            case "raise":
                raise ValueError("planted")
            case _:
                raise AssertionError(kind)


class Starts:
    """A watcher that notes each start: `LOG/ORDER-PARENT.start` holds the step it began after, and TIMES_S. LOG is the folder of
    run.dir."""

    def __call__(self, event: Any) -> None:
        """Note it."""
        if type(event).__name__ == "Started":
            folder = Path(event.folder).parent
            order = len(list(folder.glob("*.start")))
            (folder / f"{order:04d}-{PARENT}.start").write_text(" ".join(map(str, (event.step, *TIMES_S))))
