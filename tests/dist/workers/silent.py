"""Worker of test_silent_ranks: the harness, where leaving the process group waits for the peers, as NCCL may."""

import sys
import threading

import torch.distributed as dist

from harness.__main__ import main
from harness.supervision import rank_monitor as presence
from harness.supervision.exit_codes import run_rank


def wait_for_peers() -> None:
    """They never come."""
    threading.Event().wait()


if __name__ == "__main__":
    dist.destroy_process_group = wait_for_peers  # type: ignore[assignment]
    presence.DEAF_S = float(sys.argv.pop(1))
    run_rank(main)
