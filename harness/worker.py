"""One process of a run: reads the run file, plans for the world it finds, trains, and tells the watchers (on rank 0)."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, cast

import yaml

from harness.engine.process import agree, join, leave, use_cpu
from harness.engine.shared import check_shared
from harness.parts.recipe import load_recipe
from harness.plan.code import load_attribute
from harness.plan.config import Config
from harness.plan.decode import encode
from harness.plan.errors import UserError
from harness.plan.lengths import needs_dataset
from harness.plan.plan import Plan, plan
from harness.plan.world import World, place
from harness.plan.zero import deepspeed_json
from harness.stats.events import Ended, Event
from harness.train import train

Watcher = Callable[[Event], None]
EXIT = {"complete": 0, "early_stop": 0, "stop_after_steps": 0, "stop_requested": 75, "guard": 3, "failed": 1}
"""Exit status by the reason of the end. 2: a mistake of the user. 75 (EX_TEMPFAIL): a stop by a signal, to go on from."""


class StopFlag:
    """Up after SIGTERM, SIGINT or SIGUSR1. A second signal ends the process at once. As a context it restores the handlers."""

    def __init__(self) -> None:
        self.up = False

    def __enter__(self) -> "StopFlag":
        self._before = {n: signal.signal(n, self._raise) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if self.up:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.up = True

    def __call__(self) -> bool:
        """Whether a stop was asked for."""
        return self.up


def work(config: Config, name: str, environ: Mapping[str, str], *, simulate: int | None = None, show_plan: bool = True) -> int:
    """Run this process's part to the end and return its exit status. `name` names the run folder where the run file does not."""
    here = place(environ)
    cpu = use_cpu(environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"))
    world = World(simulate or here.size, here.nodes, "cpu" if cpu else "gpu", here.size)
    dataset = len(load_recipe(config.recipe).data("train")) if needs_dataset(config) and not config.recipe.samples else None
    planned = plan(config, world, dataset)
    custom = [load_attribute("watch.use", named) for named in config.watch.use]
    join(cpu)
    folder = Path(agree(config.run.dir or f"runs/{name}-{datetime.now():%Y%m%d-%H%M%S}"))
    reason, watchers = "complete", None
    with ExitStack() as stack:
        stack.callback(leave)
        if here.nodes > 1:
            check_shared(folder, here.rank)
        stop = stack.enter_context(StopFlag())
        for event in _told(train(config, planned, cpu=cpu, folder=folder, stop=stop), here.rank):
            if watchers is None:  # at the first event: a mistake found before it leaves no run folder behind
                watchers = _watchers(config, planned, folder, stack, show_plan, custom) if here.rank == 0 else []
            for watcher in watchers:
                watcher(event)
            if isinstance(event, Ended):
                reason = event.reason
    if reason in ("stop_after_steps", "stop_requested") and here.rank == 0:
        print(f"to go on: widebatch train {folder / 'run.yaml'}")
    return EXIT[reason]


def _told(events: Iterator[Event], rank: int) -> Iterator[Event]:
    """The events; and where a rank fails or is lost, a last one that says so, before the error itself goes on."""
    step = samples = 0
    try:
        for event in events:
            step, samples = event.step, event.samples
            yield event
    except (UserError, KeyboardInterrupt, GeneratorExit):
        raise
    except Exception as e:
        if step:
            text = f"{type(e).__name__} on rank {rank}: {str(e).strip().splitlines()[0] if str(e) else 'no message'}"
            lost = "; another rank is gone: the first traceback in the logs is its own" if "onnection" in str(e) else ""
            yield Ended(step, samples, "failed", text + lost)
        raise


def report(error: UserError, rank: int) -> int:
    """Print a user's mistake as one line; the exit status for it."""
    where = f"rank {rank}: " if rank else ""
    print(f"error: {where}{error}", file=sys.stderr)
    return 2


def _watchers(
    config: Config, planned: Plan, folder: Path, stack: ExitStack, show_plan: bool, custom: Sequence[Any]
) -> list[Watcher]:
    """Open the run folder and those who are told what happens."""
    from harness.watch.console import Terminal
    from harness.watch.journal import Journal

    named = [_checked(make()) for make in custom]
    folder.mkdir(parents=True, exist_ok=True)
    tree = encode(config)
    tree["run"] |= {"dir": str(folder.resolve()), "stop_after_steps": None}
    if config.checkpoint.dir and "://" not in config.checkpoint.dir:
        tree["checkpoint"]["dir"] = str(Path(config.checkpoint.dir).resolve())
    (folder / "run.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    (folder / "plan.json").write_text(json.dumps(planned.to_json(), indent=1))
    if planned.backend.startswith("zero"):
        (folder / "deepspeed.json").write_text(json.dumps(deepspeed_json(planned, config.backend), indent=1))
    journal, terminal = Journal(folder / "events.jsonl"), Terminal(show_plan=show_plan, against=_reference(config))
    stack.callback(journal.close)
    stack.callback(terminal.close)
    watchers: list[Watcher] = [journal, terminal]
    if config.watch.wandb != "off":
        from harness.watch.wandb import WandbWatcher

        logger = WandbWatcher(config.watch, folder)
        stack.callback(logger.close)
        watchers.append(logger)
    if config.watch.trackers:
        from harness.watch.trackers import TrackerWatcher

        watchers += [TrackerWatcher(tracker, folder) for tracker in config.watch.trackers]
    return watchers + named


def _reference(config: Config) -> Path | None:
    """The journal of the run to compare with."""
    if config.watch.against is None:
        return None
    journal = Path(config.watch.against) / "events.jsonl"
    if not journal.is_file():
        raise UserError("watch.against", f"{config.watch.against!r} holds no events.jsonl", "give the folder that a run wrote")
    return journal


def _checked(watcher: Any) -> Watcher:
    if not callable(watcher):
        raise UserError("watch.use", f"a {type(watcher).__name__} is no callable", "give it __call__(event)")
    return cast(Watcher, watcher)
