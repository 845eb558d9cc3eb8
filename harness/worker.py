"""One process of a run: reads the run file, plans for the ranks it finds, trains, and sends events to the watchers (on rank 0)."""

import gc
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from harness.config.allowed_names import new_folder
from harness.config.errors import UserError
from harness.config.schema import Config, RestartConfig
from harness.config.user_errors import as_error, explain, summary
from harness.distributed.peers import Peers
from harness.distributed.process_group import agree, first_here_first, join, leave, on_rank_0, out_of_memory, set_limit
from harness.distributed.rendezvous import StoppedError
from harness.distributed.shared_folder import check_shared
from harness.engine.device import use_cpu
from harness.plan.durations import needs_dataset
from harness.plan.plan import Plan, plan
from harness.plan.world import Place, World, place
from harness.recipes.base import load_recipe
from harness.recipes.contract import train_split
from harness.supervision.exit_codes import EXIT, FAILED, MEMORY, STOPPED, UNSAVED
from harness.supervision.fault_detection import RankStatus, first_failure
from harness.supervision.heartbeat import read
from harness.supervision.launch_env import Launched
from harness.supervision.output_redirect import echo, say
from harness.supervision.rank_monitor import Presence, process_state
from harness.supervision.rank_status import clear, rank_status
from harness.supervision.resume_command import after_renaming, resume_command
from harness.supervision.run_lock import PATIENCE_S, FolderLock
from harness.supervision.safe_files import append_log, check_folders
from harness.telemetry.events import Ended, Event, Noticed, Started, Windowed
from harness.training.loop import train
from harness.training.run_files import write_run_files
from harness.watch.isolation import Isolated
from harness.watch.watchers import Watching, check_watchers, make_own, open_watchers

NEWS_S = 1.0
"""How long to wait for the report that another rank failed before this one."""
SPARE_S = 30.0
"""Under a launcher of ours, a collective's timeout exceeds restart.hang_s by this, so that the launcher reports a hang first."""


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

    Without a `presence` there is no heartbeat, and signals have their default effect.
    """
    presence = presence or Presence()
    try:
        return _work(config, name, environ, presence, simulate=simulate, show_plan=show_plan)
    except UserError:
        raise
    except (Exception, SystemExit) as caught:
        e = as_error(caught)
        status = MEMORY if out_of_memory(e) else FAILED
        if presence.launched is not None:
            presence.heartbeat.ended(status, summary(e))
            return _left_behind(e, presence.launched.own(place(environ)), presence.launched)
        if e is not caught:
            raise e from None
        if status == FAILED:
            raise
        sys.excepthook(type(e), e, e.__traceback__)
        return status


def _work(
    config: Config, name: str, environ: Mapping[str, str], presence: Presence, *, simulate: int | None, show_plan: bool
) -> int:
    """See work."""
    here = place(environ)
    cpu = use_cpu(environ)
    world = World(simulate or here.size, here.nodes, "cpu" if cpu else "gpu", here.size)
    watching = check_watchers(config.watch)
    if not _join(cpu, config.restart, presence):
        return STOPPED
    with ExitStack() as stack:
        if here.size == 1:
            stack.callback(leave)  # among peers only together with them: after a failure they may be in a collective
        planned = plan(config, world, _samples(config, presence))
        folder = Path(agree(config.run.dir or new_folder(name, datetime.now())))
        if here.nodes > 1:
            check_shared(folder, here.rank)
        lock = FolderLock(folder)
        stack.callback(lock.close)
        _take(lock, folder, presence, own_checkpoints=config.checkpoint.dir is None)
        beats, peers = presence.heartbeat, _peers(here, presence)
        stack.enter_context(rank_status(folder, here, beats))
        events = train(config, planned, cpu=cpu, folder=folder, stop=presence.stop, heartbeat=beats, peers=peers)
        told = _told(events, here, planned, presence)
        reported = _Reported(config, planned, folder, watching, show_plan)
        try:
            ended = _follow(told, presence, lambda stack: _watchers(reported, stack, presence, lock) if here.rank == 0 else [])
        except UserError:
            raise
        except BaseException as e:
            if presence.launched is None:
                raise
            return _left_behind(e, presence.launched.own(here), presence.launched)
        again = resume_command(str(folder), planned, "cpu" if cpu else "cuda") if here.rank == 0 else ""
        status = _end(ended, after_renaming(again, folder, lock.now), presence)
    leave()
    return status


def _peers(here: Place, presence: Presence) -> Peers | None:
    """The other ranks' processes, where the launcher is to leave the ranks be that survive one of them."""
    told = presence.launched
    if told is None or not told.in_place or here.size == 1:
        return None
    return Peers(here.rank, [told.heartbeat(rank) for rank in range(here.size)], presence.heartbeat)


def _join(cpu: bool, limits: RestartConfig, presence: Presence) -> bool:
    """Meet the other ranks; False where this one was asked to stop before all were there."""
    spare_s = SPARE_S if presence.launched and not presence.launched.several else 0.0
    hang_s, start_s = limits.hang_s + spare_s, limits.start_s + spare_s
    presence.heartbeat.on_warm = lambda warm: set_limit(hang_s if warm else start_s)
    try:
        join(cpu, start_s, presence.stop)
    except StoppedError:
        presence.heartbeat.ended(STOPPED)
        return False
    return True


def _end(ended: Ended, again: str, presence: Presence) -> int:
    """Say how the run ended: the exit status. `again` is the command that resumes it, on the rank that says so."""
    status = EXIT[ended.reason]
    if status == STOPPED and again:
        echo(f"to resume: {again}")
    presence.heartbeat.ended(status, ended.message)
    if status == STOPPED:
        presence.stop.over()
    if status in (STOPPED, UNSAVED):
        agree("")  # torchrun takes the first rank that exits for a failure, and kills the others: exit together
    return status


def _samples(config: Config, presence: Presence) -> int | None:
    """The size of the training data, where the plan needs it and the run file does not say it."""
    if config.recipe.samples or not needs_dataset(config):
        return None
    recipe = load_recipe(config.recipe)
    with presence.heartbeat.phase("data"):
        return len(first_here_first(lambda: train_split(recipe, config.run.seed), config.restart.start_s))


def _sit(lock: FolderLock, presence: Presence) -> None:
    """Take the run folder. Raises UserError."""
    if presence.launched is None:
        lock.take("launcher", "a run")
    several = presence.launched is not None and presence.launched.several  # the previous run may still be ending on another host
    lock.take("trainer", patience_s=PATIENCE_S if several else 0.0)


def _take(lock: FolderLock, folder: Path, presence: Presence, *, own_checkpoints: bool) -> None:
    """Rank 0 takes the run folder, if it is there; where another run has it or it has links, all ranks raise UserError."""

    def take() -> None:
        if folder.is_dir():
            check_folders(folder, own_checkpoints=own_checkpoints)
            _sit(lock, presence)
            clear(folder)

    on_rank_0(take)


def _follow(events: Iterator[Event], presence: Presence, watchers: Callable[[ExitStack], list[Isolated]]) -> Ended:
    """Send every event to the watchers; returns the last one. They are opened at the first: a mistake found before it leaves
    nothing.

    They are isolated: none of them can end the run.
    """
    opened, ended, warm = None, Ended(0, 0, "complete", ""), False
    with ExitStack() as stack:
        stack.callback(gc.unfreeze)
        for event in events:
            if opened is None:
                opened = watchers(stack)
            if isinstance(event, Started | Windowed):
                presence.heartbeat.at(event.step)
            if isinstance(event, Windowed) and not warm:
                gc.freeze()  # Python's full collection would walk all that start-up made, each rank when it likes: 0.2 s of a step
                warm = True
            for watcher in opened:
                watcher(event)
            if isinstance(event, Ended):
                ended = event
        presence.heartbeat.ending()
    return ended


def _told(events: Iterator[Event], here: Place, planned: Plan, presence: Presence) -> Iterator[Event]:
    """The events; before them why the launcher restarted this process; and if a rank fails or is lost, a last event that says so,
    before the error is raised again."""
    step = samples = 0
    try:
        for event in events:
            step, samples = event.step, event.samples
            yield event
            if isinstance(event, Started) and presence.launched and presence.launched.cause:
                yield Noticed(step, samples, "restarted", presence.launched.cause)
    except (UserError, GeneratorExit):
        raise
    except BaseException as caught:
        e = as_error(caught)
        memory = out_of_memory(e)
        text = summary(e)
        if memory:
            text = f"ran out of memory at micro-batch {planned.micro_batch}"
            if presence.launched is None:
                advice = f"--batch.micro {planned.micro_batch // 2} halves it, and accumulation makes up for it"
                say(f"error: rank {here.rank} {text}: {advice}")
        presence.heartbeat.ended(MEMORY if memory else FAILED, text)
        if step:
            done = max(presence.heartbeat.step - 1, step)  # the steps of the current window are not reported any more
            samples = min(samples + (done - step) * planned.global_batch, planned.total_samples)
            yield Ended(done, samples, "failed", _culprit(f"{text} at step {done + 1:,}", here, presence))
        if e is not caught:
            raise e from None
        raise


def _culprit(text: str, here: Place, presence: Presence) -> str:
    """Which rank failed first, as text: this one, or the one that it lost."""
    if presence.launched is not None and not presence.launched.several:
        deadline, fault = time.monotonic() + NEWS_S, None
        while time.monotonic() < deadline and (fault is None or fault.rank == here.rank):
            beats = [(rank, read(presence.launched.heartbeat(rank))) for rank in range(here.size)]
            fault = first_failure([RankStatus(r, b, b is not None and process_state(b.pid) not in ("", "Z")) for r, b in beats])
            time.sleep(0.02)
        if fault is not None:
            return str(fault)
    lost = "; another rank is gone: the first traceback in the logs is its own" if "onnection" in text else ""
    return f"{text} on rank {here.rank}{lost}"


def _left_behind(error: BaseException, rank: int, launched: Launched) -> int:
    """Leave an error where our launcher finds it, and its whole traceback in the log; the exit status."""
    with suppress(OSError):  # the launcher may be gone
        launched.error(rank).write_text(explain(error))
    with suppress(OSError, UserError), append_log(launched.log(rank)) as log:  # the disk may be full; the error matters more
        log.write("".join(traceback.format_exception(error)).encode(errors="replace"))
    return MEMORY if out_of_memory(error) else FAILED


@dataclass(frozen=True)
class _Reported:
    """Rank 0's reporting: the watchers, and the events for them."""

    config: Config
    planned: Plan
    folder: Path
    watching: Watching
    show_plan: bool


def _watchers(run: _Reported, stack: ExitStack, presence: Presence, lock: FolderLock) -> list[Isolated]:
    """Open the run folder and the watchers."""
    own = make_own(run.watching)
    for watcher in own:
        stack.callback(watcher.close)
    _sit(lock, presence)
    write_run_files(run.config, run.planned, run.folder)
    alone = presence.launched is None
    return open_watchers(run.watching, run.folder, stack, show_plan=run.show_plan, alone=alone) + own
