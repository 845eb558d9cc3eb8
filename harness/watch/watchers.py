"""The watchers of a run, as `watch` in the run file asks for them: checked on every rank before it starts, opened on rank 0."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from harness.config.errors import UserError
from harness.config.run_folder import JOURNAL, RunFolder
from harness.config.schema import WatchConfig
from harness.config.user_code import load_attribute
from harness.supervision.output_redirect import say
from harness.telemetry.events import Event
from harness.watch.isolation import Isolated, describe

Watcher = Callable[[Event], None]


@final
@dataclass(frozen=True)
class Watching:
    """What `watch` asks for, checked. `own`: the user's watchers, by name, not made yet. `note`: what to say of it."""

    config: WatchConfig
    own: dict[str, Any]
    note: str


def check_watchers(config: WatchConfig) -> Watching:
    """Check what can be checked before anything is started or written. Raises UserError."""
    if config.against is not None and not RunFolder(Path(config.against)).journal.is_file():
        raise UserError("watch.against", f"{config.against!r} holds no {JOURNAL}", "give the folder that a run wrote")
    note = ""
    if config.wandb != "off":
        from harness.watch.wandb_mode import requested_mode
        from harness.watch.wandb_names import run_names

        mode, note = requested_mode(config.wandb, os.environ)
        config = replace(config, wandb=mode)
        if mode != "off":
            run_names(config, os.environ, Path())
    if config.trackers:
        from harness.watch.trackers import check_tracker

        for tracker in config.trackers:
            check_tracker(tracker)
    return Watching(config, {name: load_attribute("watch.use", name) for name in config.use}, note)


def make_own(watching: Watching) -> list[Isolated]:
    """The user's watchers. Raises UserError if one cannot be made, or cannot be called."""
    made = []
    for name, make in watching.own.items():
        short = Path(name).name
        try:
            watcher = make()
        except Exception as e:  # the user's code may raise anything
            raise UserError("watch.use", f"{short} cannot be made: {describe(e)}", "fix it, or leave it out of watch.use") from e
        if not callable(watcher):
            raise UserError(
                "watch.use", f"{short} gives a {type(watcher).__name__}, which cannot be called", "define __call__(event)"
            )
        made.append(Isolated(f"watcher {short}", watcher))
    return made


def open_watchers(watching: Watching, folder: Path, stack: ExitStack, *, show_plan: bool, alone: bool) -> list[Isolated]:
    """The journal, the terminal, W&B and other trackers of the run in `folder`; `stack` closes them. Raises UserError.

    `alone`: no launcher of ours explains a failure.
    """
    from harness.watch.console import Terminal
    from harness.watch.journal_writer import Journal

    config = watching.config
    if watching.note:
        say(f"note   {watching.note}")
    journal = Journal(RunFolder(folder).journal)
    against = RunFolder(Path(config.against)).journal if config.against else None
    terminal = Terminal(show_plan=show_plan, against=against, alone=alone)
    opened = [Isolated("the journal", journal, journal.close), Isolated("the terminal", terminal, terminal.close)]
    if config.wandb != "off":
        from harness.watch.wandb import WandbWatcher

        logger = WandbWatcher(config, folder)
        opened.append(Isolated("W&B", logger, logger.close))
    if config.trackers:
        from harness.watch.trackers import TrackerWatcher

        others = [(name, TrackerWatcher(name, config, folder)) for name in config.trackers]
        opened += [Isolated(f"tracker {name}", other, other.close) for name, other in others]
    for watcher in opened:
        stack.callback(watcher.close)
    return opened
