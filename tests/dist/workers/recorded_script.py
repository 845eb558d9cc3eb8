"""Worker of test_script_run: runs a training script, and writes the loss of each of its backward passes as a JSON list."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from harness.supervision.exit_codes import end_orderly

LOSSES: list[float] = []
BACKWARD = Accelerator.backward


def recorded(self: Accelerator, loss: Tensor, **options: Any) -> None:
    """The script's own call, with its loss noted."""
    LOSSES.append(loss.item())
    BACKWARD(self, loss, **options)


if __name__ == "__main__":
    out, *sys.argv = sys.argv[1:]
    Accelerator.backward = recorded
    runpy.run_path(sys.argv[0], run_name="__main__")
    Path(out).write_text(json.dumps(LOSSES))
    end_orderly(0)
