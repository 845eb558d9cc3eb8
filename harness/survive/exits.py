"""The exit statuses of a run, in one table. The README's is made from this."""

MEANING = {
    0: "complete, or stopped after `run.stop_after_steps`",
    1: "failed: an error, a rank that was killed or hung, and no restart left",
    2: "a mistake in the run file or the flags, told in one line",
    3: "the guard stopped the run",
    4: "out of memory, and no smaller micro-batch left to try",
    75: "stopped on request by a signal or W&B's Stop, with a checkpoint: start it again to go on (EX_TEMPFAIL)",
}
"""Beside these, 128 + n: a second signal n ended it at once."""

FAILED, USER, GUARD, MEMORY, STOPPED = 1, 2, 3, 4, 75

EXIT = {"complete": 0, "early_stop": 0, "stop_after_steps": 0, "stop_requested": STOPPED, "guard": GUARD, "failed": FAILED}
"""By the reason of a run's end."""


def markdown() -> str:
    """The table for the README."""
    rows = [f"| {status} | {text} |" for status, text in MEANING.items()]
    return "\n".join(["| exit status | the run |", "|---|---|", *rows, "| 128 + n | was ended at once by a second signal n |"])
