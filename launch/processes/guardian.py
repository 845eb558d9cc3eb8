"""`python -m launch.processes.guardian MARK`: ends the processes of a tool that was killed, as by kill -9.

It waits for the end of its standard input, which the tool holds open. Every process that carries MARK in its environment is then
asked to stop, as by Ctrl-C: a trial saves a checkpoint, from which the same command resumes.
"""

import os
import signal
import sys
import time

from harness.supervision.output_redirect import say
from launch.processes.proc_table import GRACE_S, JOB, kill, marked, outermost, there

POLL_S = 0.2


def main(mark: str) -> None:
    """Wait for the end of the tool, and then for that of its processes."""
    os.read(0, 1)
    found = f"{JOB}={mark}".encode()
    begin, asked = time.monotonic(), set[int]()
    while left := there(marked(found)):
        if not asked:
            say(f"note: process {mark.partition('-')[0]} is gone: what it started is asked to stop")
        if time.monotonic() - begin > GRACE_S:
            for pid in left:
                kill(pid, signal.SIGKILL)
        for pid in set(outermost(left)) - asked:  # a process with children passes the signal on, or needs them to save
            kill(pid, signal.SIGTERM)
            asked.add(pid)
        time.sleep(POLL_S)


if __name__ == "__main__":
    main(sys.argv[1])
