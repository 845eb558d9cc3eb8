"""Whether a run that failed is started again. Pure."""

from dataclasses import dataclass, replace
from typing import final

from harness.supervision.fault_detection import Fault

HOPELESS = ("user", "guard", "unsaved")
"""Kinds of faults that a restart would only repeat."""


@final
@dataclass(frozen=True)
class Restarts:
    """How far a run had come at its faults so far: `budget` more may be answered. `checkpoint`: the newest at the last fault.

    `micro` is the micro-batch of the ranks that run.
    """

    budget: int
    micro: int
    used: int = 0
    step: int = 0
    checkpoint: str = ""

    def after(self, fault: Fault, checkpoint: str) -> "Restarts | str":
        """What to continue with, one unit of the budget less; or why not. `checkpoint`: the newest that is committed now."""
        if fault.kind in HOPELESS:
            return "a restart would only repeat it"
        if self.used >= self.budget:
            return f"restart.budget {self.budget} is spent" if self.budget else "restart.budget is 0"
        progress = fault.step > self.step or checkpoint > self.checkpoint
        if fault.kind != "memory" and not progress:
            since = "since the last restart" if self.used else "before it"
            return f"no progress {since}: no new checkpoint, and no step past {self.step}"
        if fault.kind == "memory" and self.micro == 1:
            return "the micro-batch is 1 already: use backend fsdp or zero3, compute.recompute, or a smaller model"
        step, micro = max(fault.step, self.step), self.micro // 2 if fault.kind == "memory" else self.micro
        return replace(self, used=self.used + 1, step=step, checkpoint=checkpoint, micro=micro)

    def words(self, fault: Fault) -> str:
        """What follows a fault, as text, with these restarts left."""
        text = f"{fault}; restart {self.used} of {self.budget}"
        if fault.kind == "memory":
            text += f" with micro-batch {self.micro}, more passes a step, the same global batch"
        return text
