"""One process of a run: reads the run file, plans for the world it finds, trains, and tells the watchers (on rank 0)."""

import gc
import json
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from harness.engine.process import agree, join, leave, out_of_memory, set_limit, use_cpu
from harness.engine.rendezvous import StoppedError
from harness.engine.shared import check_shared
from harness.parts.recipe import load_recipe
from harness.plan.code import load_attribute
from harness.plan.config import Config
from harness.plan.decode import encode
from harness.plan.errors import UserError
from harness.plan.lengths import needs_dataset
from harness.plan.names import new_folder
from harness.plan.plan import Plan, plan
from harness.plan.text import to_yaml
from harness.plan.world import Place, World, place
from harness.plan.zero import deepspeed_json
from harness.stats.events import Ended, Event, Noticed, Started, Windowed
from harness.survive.exits import EXIT, FAILED, MEMORY, STOPPED
from harness.survive.judge import Look, first_failure
from harness.survive.launched import Launched
from harness.survive.lock import PATIENCE_S, FolderLock
from harness.survive.presence import Presence, process_state
from harness.survive.pulse import read
from harness.train import train

Watcher = Callable[[Event], None]
NEWS_S = 1.0
"""How long the news may take that another rank failed before this one."""
SPARE_S = 30.0
"""Under a launcher of ours that sees all ranks a collective may take so much longer than a rank may hang: it speaks first."""


def work(
    config: Config,
    name: str,
    environ: Mapping[str, str],
    presence: Presence | None = None,
    *,
    simulate: int | None = None,
    show_plan: bool = True,
) -> int:
    """Run this process's part to the end and return its exit status. `name` names the run folder where the run file does not.

    Without a `presence` nobody watches this process, and signals do what they do.
    """
    presence = presence or Presence()
    here = place(environ)
    cpu = use_cpu(environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"))
    world = World(simulate or here.size, here.nodes, "cpu" if cpu else "gpu", here.size)
    dataset = len(load_recipe(config.recipe).data("train")) if needs_dataset(config) and not config.recipe.samples else None
    planned = plan(config, world, dataset)
    custom = [load_attribute("watch.use", named) for named in config.watch.use]
    hang_s = config.restart.hang_s + (SPARE_S if presence.launched and not presence.launched.several else 0.0)
    presence.pulse.on_warm = lambda warm: set_limit(hang_s if warm else config.restart.start_s)
    try:
        join(cpu, config.restart.start_s, presence.stop)
    except StoppedError:
        presence.pulse.ended(STOPPED)
        return STOPPED
    with ExitStack() as stack:
        stack.callback(leave)
        folder = Path(agree(config.run.dir or new_folder(name, datetime.now())))
        if here.nodes > 1:
            check_shared(folder, here.rank)
        lock = FolderLock(folder)
        stack.callback(lock.close)
        _take(lock, folder, here.rank, presence)
        events = train(config, planned, cpu=cpu, folder=folder, stop=presence.stop, pulse=presence.pulse)
        told = _told(events, here, planned, presence)
        try:
            ended = _follow(
                told,
                presence,
                lambda stack: (
                    _watchers(config, planned, folder, stack, show_plan, custom, presence, lock) if here.rank == 0 else []
                ),
            )
        except UserError:
            raise
        except BaseException as e:
            if presence.launched is None:
                raise
            return _left_behind(e, presence.launched.own(here), presence.launched)
        status = EXIT[ended.reason]
        if status == STOPPED and here.rank == 0:
            print(f"to go on: widebatch train {shlex.quote(str(folder / 'run.yaml'))}")
        presence.pulse.ended(status, ended.message)
        if status == STOPPED:
            presence.stop.over()
            agree("")  # torchrun takes the first of us to leave for a failure, and kills the others: leave together
    return status


def _sit(lock: FolderLock, presence: Presence) -> None:
    """Take the run folder. Raises UserError."""
    if presence.launched is None:
        lock.take("launcher", "a run")
    several = presence.launched is not None and presence.launched.several  # the one before may end on another host just now
    lock.take("trainer", patience_s=PATIENCE_S if several else 0.0)


def _take(lock: FolderLock, folder: Path, rank: int, presence: Presence) -> None:
    """Rank 0 takes the run folder, if it is there; where another run has it, all ranks raise the UserError that says so."""
    problem: list[str] = []
    if rank == 0 and folder.is_dir():
        try:
            _sit(lock, presence)
        except UserError as e:
            problem = [e.setting, e.problem, e.remedy]
    problem = json.loads(agree(json.dumps(problem)))
    if problem:
        raise UserError(*problem)


def _follow(events: Iterator[Event], presence: Presence, watchers: Callable[[ExitStack], list[Watcher]]) -> Ended:
    """Tell the watchers every event; the last one. They are opened at the first: a mistake found before it leaves nothing."""
    opened, ended, warm = None, Ended(0, 0, "complete", ""), False
    with ExitStack() as stack:
        stack.callback(gc.unfreeze)
        for event in events:
            if opened is None:
                opened = watchers(stack)
            if isinstance(event, Started | Windowed):
                presence.pulse.at(event.step)
            if isinstance(event, Windowed) and not warm:
                gc.freeze()  # Python's full collection would walk all that start-up made, each rank when it likes: 0.2 s of a step
                warm = True
            for watcher in opened:
                watcher(event)
            if isinstance(event, Ended):
                ended = event
        presence.pulse.ending()
    return ended


def _told(events: Iterator[Event], here: Place, planned: Plan, presence: Presence) -> Iterator[Event]:
    """The events; why our launcher started this process again; and where a rank fails or is lost, a last event that says so,
    before the error itself goes on."""
    step = samples = 0
    try:
        for event in events:
            step, samples = event.step, event.samples
            yield event
            if isinstance(event, Started) and presence.launched and presence.launched.cause:
                yield Noticed(step, samples, "restarted", presence.launched.cause)
    except (UserError, GeneratorExit):
        raise
    except BaseException as e:
        memory = out_of_memory(e)
        text = f"{type(e).__name__}: {str(e).strip().splitlines()[0] if str(e).strip() else 'no message'}"
        if memory:
            text = f"ran out of memory at micro-batch {planned.micro_batch}"
            if presence.launched is None:
                advice = f"--batch.micro {planned.micro_batch // 2} halves it, and accumulation makes up for it"
                print(f"error: rank {here.rank} {text}: {advice}", file=sys.stderr)
        presence.pulse.ended(MEMORY if memory else FAILED, text)
        if step:
            yield Ended(step, samples, "failed", _culprit(text, here, presence))
        raise


def _culprit(text: str, here: Place, presence: Presence) -> str:
    """Who failed first, in words: this rank, or the one whose loss it noticed."""
    if presence.launched is not None and not presence.launched.several:
        deadline, fault = time.monotonic() + NEWS_S, None
        while time.monotonic() < deadline and (fault is None or fault.rank == here.rank):
            beats = [(rank, read(presence.launched.pulse(rank))) for rank in range(here.size)]
            fault = first_failure([Look(r, b, b is not None and process_state(b.pid) not in ("", "Z")) for r, b in beats])
            time.sleep(0.02)
        if fault is not None:
            return str(fault)
    lost = "; another rank is gone: the first traceback in the logs is its own" if "onnection" in text else ""
    return f"{text} on rank {here.rank}{lost}"


def _left_behind(error: BaseException, rank: int, launched: Launched) -> int:
    """Leave the traceback where our launcher finds it, and in the log; the exit status."""
    text = "".join(traceback.format_exception(error))
    launched.error(rank).write_text(text)
    with launched.log(rank).open("a") as log:
        log.write(text)
    return MEMORY if out_of_memory(error) else FAILED


def _watchers(
    config: Config,
    planned: Plan,
    folder: Path,
    stack: ExitStack,
    show_plan: bool,
    custom: Sequence[Any],
    presence: Presence,
    lock: FolderLock,
) -> list[Watcher]:
    """Open the run folder and those who are told what happens."""
    from harness.watch.console import Terminal
    from harness.watch.journal import Journal

    named = [_checked(make()) for make in custom]
    folder.mkdir(parents=True, exist_ok=True)
    _sit(lock, presence)
    tree = encode(config)
    tree["run"] |= {"dir": str(folder.resolve()), "stop_after_steps": None}
    if config.checkpoint.dir and "://" not in config.checkpoint.dir:
        tree["checkpoint"]["dir"] = str(Path(config.checkpoint.dir).resolve())
    (folder / "run.yaml").write_text(to_yaml(tree))
    (folder / "plan.json").write_text(json.dumps(planned.to_json(), indent=1))
    if planned.backend.startswith("zero"):
        (folder / "deepspeed.json").write_text(json.dumps(deepspeed_json(planned, config.backend), indent=1))
    journal, terminal = (
        Journal(folder / "events.jsonl"),
        Terminal(show_plan=show_plan, against=_reference(config), alone=presence.launched is None),
    )
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
