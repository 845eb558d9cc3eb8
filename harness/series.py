"""Several small runs, one after the other, in one process: `python -m harness.series A/run.yaml B/run.yaml`. Torch starts once."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.plan.decode import load
from harness.plan.errors import UserError
from harness.plan.world import ALONE
from harness.survive.exits import EXIT, USER
from harness.survive.presence import present
from harness.worker import work


def main(argv: Sequence[str]) -> int:
    """Run them all; a run that the guard stopped does not end the series, any other end but a complete one does."""
    for path in map(Path, argv):
        try:
            with present(os.environ, ALONE, started=False) as presence:
                status = work(load(path), path.stem, os.environ, presence, show_plan=False)
        except UserError as e:
            print(f"error: {e}", file=sys.stderr)
            return USER
        if status not in (EXIT["complete"], EXIT["guard"]):
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
