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
    assert _said(PROGRAM, number, str(answers)) == (ANSWERS[number] if answers else "")


def _said(program: str, number: signal.Signals, *arguments: str) -> str:
    """What a program says at a terminal when it gets a signal."""
    terminal, end = os.openpty()
    argv = [sys.executable, "-c", program, *arguments]
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
    return said.strip()


LISTENING = {
    "widebatch train": """
import os, time
from harness.plan.world import ALONE
from harness.supervision.rank_monitor import present
with present(os.environ, ALONE, started=False) as presence:
    print("ready", flush=True)
    while not presence.stop():
        time.sleep(0.01)
""",
    "widebatch launch": """
import time
from launch.processes.supervisor import Stop
with Stop() as stop:
    print("ready", flush=True)
    while not stop.asked:
        time.sleep(0.01)
""",
}


@pytest.mark.parametrize("command", LISTENING)
@pytest.mark.parametrize("number", ANSWERS)
def test_both_commands_that_train_answer(command: str, number: signal.Signals) -> None:
    assert _said(LISTENING[command], number) == ANSWERS[number]
