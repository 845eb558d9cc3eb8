"""Us, with everything on, fed by the comparison: its clock stands between our data and our step."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness.parts.data import Feed
from harness.plan.decode import decode
from harness.plan.plan import plan
from harness.plan.world import World, place
from harness.train import train
from harness.watch.console import Terminal
from harness.watch.journal import Journal
from tests.peers.work import Work, run_file

Hook = Callable[[Iterator[Any]], Iterator[Any]]
"""Batches to batches: what the comparison does around each fetch. The run ends where they do."""


def run(work: Work, hook: Hook, folder: Path, *, log: bool = True, backend: str = "ddp", every: int | None = None) -> None:
    """Train until the batches end. `log` off: nobody is told, and a window has a thousand steps."""
    here = place(os.environ)
    config = decode(run_file(work, backend, log=log, every=every))
    journal, terminal = Journal(folder / "events.jsonl"), Terminal(show_plan=False)
    whole = Feed.steps
    try:
        Feed.steps = lambda feed, deals: hook(whole(feed, deals))  # type: ignore[method-assign, assignment]
        for event in train(config, plan(config, World(here.size, device="cpu")), cpu=True):
            if log and here.rank == 0:
                journal(event)
                terminal(event)
    finally:
        Feed.steps = whole  # type: ignore[method-assign]
        journal.close()
        terminal.close()
