"""`python -m tests.dist.workers.patient ARGS`: the worker, `python -m harness ARGS`, that waits for W&B on a busy machine.

Its own limits are for services that are gone, and a busy machine can make a healthy one look like that.
"""

import os

from harness.__main__ import main
from harness.supervision.exit_codes import run_rank
from harness.watch import wandb
from tests.support.processes import LIMIT_S

ASKED = "WIDEBATCH_TESTS_WAIT_FOR_WANDB"


def if_asked() -> None:
    """Wait so long where the environment asks for it."""
    if ASKED in os.environ:
        wandb.ANSWER_S = wandb.BEGIN_S = LIMIT_S
        wandb.FINISH_S = wandb.SLOW_START_S = int(LIMIT_S)


if __name__ == "__main__":
    if_asked()
    run_rank(main)
