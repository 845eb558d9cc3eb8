"""Us, with everything on, fed by the comparison: its clock stands between our data and our step."""

import io
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from harness.config.loader import decode
from harness.data.feed import Feed
from harness.plan.plan import plan
from harness.plan.world import World, place
from harness.telemetry.events import Event, Stepped, Windowed
from harness.training.loop import train
from harness.watch.console import Terminal
from harness.watch.journal_writer import Journal
from tests.bench.peers.work import Work, run_file

Hook = Callable[[Iterator[Any]], Iterator[Any]]
"""Batches to batches: what the comparison does around each fetch. The run ends where they do."""
Watcher = Callable[[Event], None]
VARIANTS: dict[str, dict[str, Any]] = {
    "widebatch": {},
    "widebatch zero0": {"backend": "zero0"},
    "widebatch, noise scale off": {"noise": False},
    "widebatch, windows of 50 steps": {"every": 50},
}


def run(
    work: Work,
    hook: Hook,
    folder: Path,
    *,
    log: bool = True,
    backend: str = "ddp",
    noise: bool = True,
    every: int | None = None,
    watchers: list[Watcher] | None = None,
) -> None:
    """Train until the batches end. `log` off: nobody is told, and a window has a thousand steps."""
    here = place(os.environ)
    config = decode(run_file(work, backend, log=log, noise=noise and log, every=every))
    whole = Feed.steps
    with ExitStack() as stack:
        if watchers is None:
            journal, terminal = Journal(folder / "events.jsonl"), Terminal(show_plan=False)
            stack.callback(journal.close)
            stack.callback(terminal.close)
            watchers = [journal, terminal]
        try:
            Feed.steps = lambda feed, step_shards: hook(whole(feed, step_shards))  # type: ignore[method-assign, assignment]
            for event in train(config, plan(config, World(here.size, device="cpu")), cpu=True):
                for watcher in watchers if log and here.rank == 0 else ():
                    watcher(event)
        finally:
            Feed.steps = whole  # type: ignore[method-assign]


def watching(work: Work, hook: Hook, folder: Path, steps: int) -> dict[str, float]:
    """Microseconds a step that each watcher takes of the training thread: the journal, a live line on a terminal, W&B offline."""
    from harness.watch.wandb import WandbWatcher

    watch = decode(run_file(work) | {"watch": {"wandb": "offline"}}).watch
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    told: dict[str, Journal | Terminal | WandbWatcher] = {
        "journal": Journal(folder / "events.jsonl"),
        "terminal": Terminal(console, show_plan=False),
        "W&B": WandbWatcher(watch, folder),
    }
    spent = dict.fromkeys(told, 0.0)

    def timed(name: str, watcher: Watcher) -> Watcher:
        def call(event: Event) -> None:
            begin = time.thread_time()
            watcher(event)
            if isinstance(event, Stepped | Windowed):  # all others are few
                spent[name] += time.thread_time() - begin

        return call

    try:
        run(work, hook, folder, watchers=[timed(name, watcher) for name, watcher in told.items()])
    finally:
        for open_one in told.values():
            open_one.close()
    return {name: 1e6 * seconds / steps for name, seconds in spent.items()}
