"""Several small runs, in turn, in one process: `python -m harness.tools.run_series A/run.yaml B/run.yaml`. Torch starts once."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.config.errors import UserError
from harness.config.loader import load
from harness.plan.rank_env import alone
from harness.plan.world import ALONE
from harness.supervision.exit_codes import EXIT, USER
from harness.supervision.output_redirect import say
from harness.supervision.rank_monitor import present
from harness.worker import work


def main(argv: Sequence[str]) -> int:
    """Run them all; a run that the guard stopped does not end the series, any other end but a complete one does."""
    for path in map(Path, argv):
        try:
            alone(os.environ)
            with present(os.environ, ALONE, started=False) as presence:
                status = work(load(path), path.stem, os.environ, presence, show_plan=False)
        except UserError as e:
            say(f"error: {e}")
            return USER
        if status not in (EXIT["complete"], EXIT["guard"]):
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
