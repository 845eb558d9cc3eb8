"""Ctrl-C at a terminal is answered before anything else happens."""

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


@pytest.mark.parametrize(("answers", "number"), [(True, signal.SIGINT), (True, signal.SIGTERM), (False, signal.SIGINT)])
def test_a_person_who_presses_ctrl_c_hears_what_happens(answers: bool, number: signal.Signals) -> None:
    """A scheduler's SIGTERM is not answered, nor is the signal of a rank whose launcher has answered."""
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
    assert ("press Ctrl-C again to stop now" in said) == (answers and number == signal.SIGINT)
