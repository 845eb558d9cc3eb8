"""How a rank ends: its threads and its exit functions first, then at once, for threads in C++ abort what Python clears away."""

import subprocess
import sys

import pytest

from tests.support.processes import LIMIT_S, ROOT, environ

PROGRAM = """
import atexit, sys, threading
from concurrent.futures import ThreadPoolExecutor
from harness.supervision.exit_codes import run_rank

class Held:
    def __del__(self):
        print("cleared away")

held = Held()
asked = threading.Event()
atexit.register(lambda: print("exit function"))
pool = ThreadPoolExecutor(1)
pool.submit(lambda: print("pool"))

def main(argv):
    threading.Thread(target=lambda: (asked.wait(), print("thread"))).start()
    threading.Timer(0.2, asked.set).start()
    sys.stdout.write("main, ")
    return int(argv[0])

run_rank(main)
"""


@pytest.mark.parametrize("status", [0, 3, 2])
@pytest.mark.parametrize("started", [True, False])
def test_a_rank_ends_after_its_threads_and_exit_functions_and_clears_nothing_away(started: bool, status: int) -> None:
    """What Python clears away last aborted good ranks over gloo, on loaded cores."""
    env = environ() | ({"RANK": "0"} if started else {})
    argv = [sys.executable, "-c", PROGRAM, str(status)]
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == status, done.stderr
    assert done.stderr == ""
    assert "cleared away" not in done.stdout
    if started and status == 2:
        assert "exit function" not in done.stdout, "a failed rank of a launcher ends at once: these may wait for its peers"
    else:
        assert "thread\n" in done.stdout
        assert done.stdout.endswith("exit function\n")
