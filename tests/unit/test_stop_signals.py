"""A signal that asks for a stop is answered at a terminal before anything else happens."""

import os
import signal
import subprocess
import sys

import pytest

from tests.support.processes import LIMIT_S, ROOT

PROGRAM = """
import sys, time
from harness.supervision.stop_signals import StopFlag
with StopFlag() as stop:
    stop.answers = sys.argv[1] == "True"
    print("ready", flush=True)
    while not stop():
        time.sleep(0.01)
"""


ANSWERS = {
    signal.SIGINT: "stopping: the run is saved after the current step; press Ctrl-C again to stop now",
    signal.SIGTERM: "stopping: the run is saved after the current step; a second signal stops it now",
    signal.SIGUSR1: "stopping: the run is saved after the current step; a second signal stops it now",
}


@pytest.mark.parametrize(
    ("answers", "number"), [(True, signal.SIGINT), (True, signal.SIGTERM), (True, signal.SIGUSR1), (False, signal.SIGINT)]
)
def test_a_person_at_the_terminal_hears_what_happens(answers: bool, number: signal.Signals) -> None:
    """The signal of a rank whose launcher has answered is not answered again."""
    terminal, end = os.openpty()
    argv = [sys.executable, "-c", PROGRAM, str(answers)]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=end) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.wait(LIMIT_S) == 0
    os.close(end)
    try:
        said = os.read(terminal, 4096).decode()
    except OSError:  # nothing was said, and nobody has the other end any more
        said = ""
    os.close(terminal)
    assert said.strip() == (ANSWERS[number] if answers else "")
