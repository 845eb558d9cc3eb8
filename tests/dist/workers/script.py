"""Worker of test_script_run: a script of configs/examples on a CPU, `python -m tests.dist.workers.script FILE ARGS...`, which ends
as our own ranks do: on busy cores threads of gloo's may abort a process that clears Python away."""

import os
import runpy
import sys

from harness.supervision.exit_codes import end_orderly

if __name__ == "__main__":
    os.environ["ACCELERATE_USE_CPU"] = "true"
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
    end_orderly(0)
