"""The exit statuses of a run, in one table (the README's is made from this), and how a rank ends with one."""

import atexit
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from harness.supervision.launch_env import VARIABLE
from harness.supervision.output_redirect import open_missing, outlive_readers

MEANING = {
    0: "complete, or stopped after `run.stop_after_steps`",
    1: "failed: an error, a rank that was killed or hung, and no restart left",
    2: "a mistake in the run file or the flags, reported in one line",
    3: "the guard stopped the run",
    4: "out of memory, and no smaller micro-batch left to try",
    5: "trained to its end, but the last checkpoint could not be written",
    75: "stopped on request by a signal or W&B's Stop, with a checkpoint: start it again to resume (EX_TEMPFAIL)",
}
"""The meaning of each status. There is also 128 + n: a second signal n ended the run at once."""

FAILED, USER, GUARD, MEMORY, UNSAVED, STOPPED = 1, 2, 3, 4, 5, 75

EXIT = {
    "complete": 0,
    "early_stop": 0,
    "stop_after_steps": 0,
    "stop_requested": STOPPED,
    "guard": GUARD,
    "unsaved": UNSAVED,
    "failed": FAILED,
}
"""Exit status by the reason of a run's end."""


_AGREED = (0, GUARD, UNSAVED, STOPPED)
"""Statuses with which all ranks end together, after they have left their process group."""


def end(status: int) -> NoReturn:
    """End this process at once, with what it said flushed.

    For a rank that failed: to leave the process group, or to let Python shut down, may wait for ranks that do the same only
    much later or never (with NCCL, until a watchdog ends them).
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # nobody reads it any more
            continue
    os._exit(status)


def end_orderly(status: int) -> NoReturn:
    """End this process after its threads and what was registered with `atexit`, but without Python's own shutdown.

    A thread of gloo's, or a daemon thread inside torch, that waits for the interpreter lock while Python shuts down aborts the
    process ("terminate called without an active exception"): a good run would end with -6.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # as Python does: waits for threads that are no daemons
    atexit._run_exitfuncs()
    end(status)


def run_rank(main: Callable[[Sequence[str]], int], environ: Mapping[str, str] = os.environ) -> NoReturn:
    """Run a rank's program to its end as a process: the status that `main` gives, 1 after an error that it raises.

    One that a launcher started and that failed ends at once: its peers may be in a collective, and the launcher waits for it.
    """
    open_missing()
    outlive_readers()
    try:
        status = main(sys.argv[1:])
    except Exception:
        if not _started(environ):
            raise
        sys.excepthook(*sys.exc_info())
        status = FAILED
    if status not in _AGREED and _started(environ):
        end(status)
    end_orderly(status)


def _started(environ: Mapping[str, str]) -> bool:
    """Whether a launcher started this process; accelerate gives one that is alone no rank."""
    return "RANK" in environ or VARIABLE in environ


def markdown() -> str:
    """The table for the README."""
    rows = [f"| {status} | {text} |" for status, text in MEANING.items()]
    return "\n".join(["| exit status | the run |", "|---|---|", *rows, "| 128 + n | was ended at once by a second signal n |"])
