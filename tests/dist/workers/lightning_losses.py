"""Worker of test_lightning: runs a script, and rank 0 writes down each step's loss, of all passes and ranks, and rate."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback


class Losses(Callback):  # type: ignore[misc]
    """Every pass of a step has equally many samples here: the step's loss is the mean of theirs."""

    def __init__(self, out: Path) -> None:
        self.out, self.steps = out, 0
        self.passes: list[torch.Tensor] = []
        self.seen: list[tuple[int, float, float]] = []

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """A resumed run has steps behind it."""
        self.steps = trainer.global_step

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, number: int) -> None:
        """A pass has run; Lightning has divided its loss by the passes."""
        self.passes.append(outputs["loss"].detach())
        if trainer.global_step != self.steps:
            self.steps = trainer.global_step
            mean = float(trainer.strategy.reduce(torch.stack(self.passes).sum()))
            self.seen.append((self.steps, mean, trainer.optimizers[0].param_groups[0]["lr"]))
            self.passes = []

    def on_train_end(self, trainer: Any, module: Any) -> None:
        """Write it down."""
        if trainer.is_global_zero:
            self.out.write_text(json.dumps(self.seen))


if __name__ == "__main__":
    out, script, *rest = sys.argv[1:]
    losses, init = Losses(Path(out)), lightning.Trainer.__init__

    def observed(trainer: Any, **options: Any) -> None:
        """A Trainer with one callback more."""
        init(trainer, **(options | {"callbacks": [*options.get("callbacks", []), losses], "enable_progress_bar": False}))

    lightning.Trainer.__init__ = observed
    sys.argv = [script, *rest]
    runpy.run_path(script, run_name="__main__")
