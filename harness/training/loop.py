"""The loop: train(config, plan) yields frozen events. Watchers cannot steer.

What steers the run is in here and agreed over ranks: a step that is not finite, the guard, a batch that changes, the stop on
request.
"""

import secrets
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from socket import gethostname
from typing import Any

import torch

from harness.checkpoint.place_lock import PlaceLock, hold
from harness.checkpoint.train_state import State
from harness.config.loader import encode
from harness.config.run_folder import RunFolder
from harness.config.schema import Config
from harness.data.feed import Feed
from harness.data.sample_order import StepShards, step_shards
from harness.data.training_order import training_order
from harness.distributed.peers import Peers
from harness.distributed.process_group import agree, first_here_first, gather, on_rank_0
from harness.engine.data_agreement import check_data, check_size
from harness.engine.device import device_name
from harness.engine.factory import open_engine
from harness.engine.interface import Engine, StepTooLargeError
from harness.engine.node_sampler import NodeSampler, measure_node
from harness.plan.guard_policy import Trouble, policy
from harness.plan.plan import Plan
from harness.plan.plan_warnings import SHOWN
from harness.plan.step_triggers import LOOK, NOTHING, Due, due, next_trigger, stop_check_steps
from harness.recipes.base import Recipe, load_recipe
from harness.recipes.contract import train_split, valid_split
from harness.recipes.gathers import check_gathers
from harness.supervision.heartbeat import Heartbeat
from harness.telemetry.environment import environment
from harness.telemetry.events import Ended, Evaluated, Event, Metrics, Noticed, RanksLost, Shown, Started
from harness.telemetry.measurements import Reading
from harness.telemetry.rank_window import rank_window
from harness.training.adaptive_batch import better, follow_noise, on_plateau, patience_again
from harness.training.bad_samples import meet, spent, take_up
from harness.training.checkpointing import Saver
from harness.training.culprits import culprits
from harness.training.ending import check_counted, end_reason, ended, judged, unsaved
from harness.training.evaluate import diagnostics, evaluate
from harness.training.feeds import open_feed
from harness.training.first_batch import check_metric, try_recipe
from harness.training.guard import StopError, act, limit, suspicion
from harness.training.open_window import Outcome, Passes, Window
from harness.training.recovery import recover
from harness.training.resume import aged, facts_of, fresh_state, resume, same_scale
from harness.training.saves import Saves, Unsaved
from harness.training.step_rate import pace
from harness.training.stop_look import AbandonedError, StopLook
from harness.training.window_report import WindowReporter


def train(  # noqa: PLR0913  what surrounds a run, each given by its name
    config: Config,
    plan: Plan,
    *,
    cpu: bool = False,
    folder: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
    engine: Engine | None = None,
    heartbeat: Heartbeat | None = None,
    peers: Peers | None = None,
) -> Iterator[Event]:
    """Train `config` by `plan` on the ranks that have joined, and yield the run's events.

    `cpu`: compute on the CPU. `folder` is the run folder: with one, checkpoints are written there, and a run that has some resumes.
    `stop` is called once a step; when it returns True on any rank, all ranks save and end after the same step. `engine`: one that
    was opened for this plan; None: that of the run file's backend. `heartbeat` records progress. `peers`: the other ranks'
    processes, of which some may be lost. Raises UserError, before the first step, for a mistake in the run file, the recipe or its
    data.
    """
    recipe = load_recipe(config.recipe)
    heartbeat = heartbeat or Heartbeat()
    with heartbeat.phase("data"):
        data = first_here_first(lambda: train_split(recipe, config.run.seed), config.restart.start_s)
    check_size(plan, len(data))
    run = Loop(config, plan, recipe, engine or open_engine(config, plan, recipe, cpu=cpu), folder, stop)
    engine = run.engine
    engine.heartbeat, run.peers = heartbeat, None if recipe.gathers else peers
    run.feed = open_feed(engine, recipe, config, data, order=training_order(data, config))
    with heartbeat.phase("data"):
        valid = first_here_first(lambda: valid_split(recipe, config.run.seed), config.restart.start_s)
    run.valid = None if valid is None else open_feed(engine, recipe, config, valid, order=None)
    seen = check_gathers(recipe, config, plan, 0 if valid is None else len(valid))
    seen += check_data(recipe, data, valid, config.run.seed)
    seen += try_recipe(engine, recipe, config, run.feed, run.valid)
    run.reporter = WindowReporter(config, plan, recipe, engine, run.feed, 0 if valid is None else len(valid))
    try:
        notices = list(run.resume())
        state = run.state
        yield run.started()
        yield from notices
        yield from (Noticed(state.step, state.samples, "data", text) for text in seen)
        if valid is None:
            yield Noticed(state.step, state.samples, "no_validation", 'data("valid") is None: nothing is evaluated')
        if not run.resumed:
            yield from (Noticed(state.step, state.samples, w.code, w.message) for w in plan.warnings[:SHOWN])
        yield from (told for told in run.steps() if not isinstance(told, Passes))
    finally:
        run.close()


@dataclass
class Loop:
    """A run in progress: what `train` would otherwise hold in twenty local variables.

    Where a script owns the passes, a subclass hands them over.
    """

    config: Config
    plan: Plan
    recipe: Recipe
    engine: Engine
    folder: Path | None
    stop: Callable[[], bool]
    state: State = field(default_factory=State)
    reporter: WindowReporter = field(init=False)
    feed: Feed = field(init=False)
    valid: Feed | None = field(init=False)
    saver: Saves = field(default_factory=Unsaved)
    evaluated_at: int = -1
    first: int = 0
    asked: bool = False
    stop_check: int = 1
    """After how many steps of a window the ranks look whether any was asked to stop; the same on all of them."""
    resumed: bool = False
    ended: Ended | None = None
    hold: PlaceLock | None = None
    peers: Peers | None = None
    window: Window | None = None
    """The window whose steps are not reported yet."""
    closing: tuple[State, Reading, Due] | None = None
    """What `_finish` is at."""
    sampler: NodeSampler | None = None

    def resume(self) -> Iterator[Event]:
        """Take over the newest good checkpoint of the run, if there is one, and be ready to write the next."""
        if self.folder is None:
            return
        folder, where = self.folder, RunFolder(self.folder).checkpoints(self.config)
        self.hold = on_rank_0(lambda: hold(where, folder))
        facts = facts_of(self.config, self.plan, self.recipe, self.feed.data, self.engine)
        state, notices = resume(self.engine, self.config, facts, self.folder)
        if state is not None:
            self.reporter.saved_at_samples = state.samples
            take_up(state, self.feed, self.valid)
        self.state, self.resumed = state or fresh_state(self.folder), state is not None
        self.reporter.age, of_age = aged(self.state)
        lineage = self.state.lineage or agree(secrets.token_hex(8))
        noise = same_scale(self.state, self.engine.estimator)
        self.state = replace(noise, began=self.reporter.age.began, lineage=lineage)
        self.saver = Saver(self.engine, self.config, self.folder, self.reporter, asdict(facts), state)
        yield from notices + of_age

    def started(self) -> Started:
        """The run begins, or continues, at the current state. All ranks call it."""
        engine, state = self.engine, self.state
        self.sampler = measure_node(engine)
        told = (engine.parameters(), str(engine.device), engine.estimator, state.began, engine.parameters(trained=True))
        about = environment(torch.__version__, device_name(engine.device), gather(gethostname()))
        return Started(
            self.plan, encode(self.config), str(self.folder or ""), state.step, state.samples, *told, about, len(self.feed.data)
        )

    def close(self) -> None:
        """End the sampler and the writer, and leave the place of checkpoints."""
        if self.sampler is not None:
            self.sampler.close()
        self.saver.close()
        if self.hold is not None:
            self.hold.close()

    def steps(self) -> Iterator[Event | Passes]:
        """All steps from the current state to the end of the run."""
        self.first = self.state.step
        if not self.saver.saved and "roll_back" in policy(self.config.guard).values():
            yield from self._save()
        self.reporter.clock.discard("start")
        if self.valid is not None and self.state.evaluation_due:  # a stop or a kill came before it was made
            yield from self._evaluate()
            if self.state.evaluation_due:
                yield from self._abandon()
        yield from self._segments()
        assert self.ended is not None  # noqa: S101  that is where they end
        yield from self.saver.settle()
        yield from self._notes()
        lacks = "" if self.ended.reason == "guard" else self.saver.missing(self.state)
        yield unsaved(self.ended, lacks) if lacks else self.ended

    def _segments(self) -> Iterator[Event | Passes]:
        """All segments to the end; where ranks are lost in one, the others continue if they can."""
        if self.peers is not None and not self.peers.watch():
            self.peers = None
        error: RuntimeError | None = None
        while self.ended is None:
            try:
                yield from self._segment() if error is None else self._recover(self.peers, error)
                error = None
            except RuntimeError as e:
                error = e
                if self.peers is None or (self.window is None and self.closing is None):
                    raise
        if self.peers is not None:
            self.peers.rely()

    def _recover(self, peers: Peers | None, error: RuntimeError) -> Iterator[Event]:
        """Continue without ranks that are lost; raises `error` where that is not why a collective failed.

        The steps that are taken stay, and are reported; the one in which it happened is taken again.
        """
        assert peers is not None  # noqa: S101  it was asked for
        window, closing, engine = self.window, self.closing, self.engine
        stand = f"{self.state.step} {'closing' if window is None else (len(window.taken), window.due)}"
        limit_s = self.config.restart.start_s if self.state.step == self.first else self.config.restart.hang_s
        with self.reporter.clock.pause("recovery"), engine.heartbeat.phase("recover"):
            done = recover(engine, peers, self.plan, stand, limit_s, error)
            abandoned, events = self.saver.regroup(self.state)
        self.plan, self.state = done.plan, replace(self.state, recoveries=self.state.recoveries + 1)
        at = self.state.step + (0 if window is None else len(window.taken))
        engine.heartbeat.at(at)
        self.reporter.alerts.regroup()
        yield RanksLost(at, self.state.samples, "rank_lost", str(done), done.lost, done.plan.world_size, done.seconds)
        yield from events
        if window is not None and window.taken:
            yield from self._close(window, window.due or Due())
        elif closing is not None:
            yield from self._finish(*closing, evaluated=self.evaluated_at == self.state.samples)
        self.window = self.closing = None
        if abandoned and self.ended is None:
            yield from self._save()

    def _notes(self) -> Iterator[Event]:
        """The engine's notices, as events."""
        for code, text in self.engine.notes:
            yield Noticed(self.state.step, self.state.samples, code, text)
        self.engine.notes.clear()

    def _hand_over(self, passes: Passes) -> Iterator[Passes]:
        """Before a step: where a script owns the passes, it gets them here. The engine runs them itself otherwise."""
        return iter(())

    def _segment(self) -> Iterator[Event | Passes]:
        """Steps at one batch, to the end of the run or to where the batch, the micro-batch or the place in the stream changes.

        The life of a step: its samples are fetched; its learning rate follows from its place in the schedule; what is due after it
        is known before it is taken; the engine runs its passes, reduces and updates, and reads nothing back. Where a window closes,
        `_close` reads the device once, reports, guards, evaluates and saves, and says how the run proceeds. A stop that was asked
        for closes the window too.
        """
        plan, engine = self._stage(), self.engine
        window = self._open_window(plan)
        feed = self.feed.steps(self._step_shards(plan, window.position))
        while True:
            began = time.perf_counter()
            fetched = next(feed, None)
            if fetched is None:
                self.ended = self.ended or ended(self.state, "complete")
                return
            window.waited_s += time.perf_counter() - began
            shards, micros = fetched
            step = window.rate.step(window.position, window.schedule_position, shards.samples)
            after = self.state.guard.past(shards.start + shards.samples)
            up = self._due(window, after, step.advance)
            new_batch = not up.over and self._batch(window.schedule_position + step.advance) != plan.global_batch
            yield from self._hand_over(Passes(shards, micros))
            self.asked |= self.stop()
            try:
                engine.step(micros, step.lr, self.asked, close=up.close or new_batch, limit=window.limit)
            except StepTooLargeError as e:
                if window.taken:
                    yield from self._close(window, Due())
                yield self._smaller(plan, e)
                return
            window.take(step, after)
            if up.close or new_batch or (up.look and engine.stop_asked()):
                outcome = yield from self._close(window, up)
                if new_batch or outcome is not Outcome.CONTINUES:
                    return
                window = self._open_window(plan)

    def _open_window(self, plan: Plan) -> Window:
        """The window that begins at the current state."""
        state = self.state
        position = state.guard.past(state.samples)
        self.engine.begin()
        trigger = next_trigger(self.plan, position)
        self.window = Window(pace(plan, state), limit(self.config, state), position, state.scheduled, trigger)
        return self.window

    def _due(self, window: Window, after: int, advance: float) -> Due:
        """What is due after the window's next step, which ends at `after` in the stream."""
        taken = len(window.taken) + 1
        count = self.state.step + taken - self.first
        last, full = count == self.config.run.stop_after_steps, count == 1 or taken == self.config.watch.every_steps
        if not (last or full or after >= window.trigger):
            return LOOK if taken % self.stop_check == 0 else NOTHING
        return due(self.plan, window.position, after, window.schedule_position + advance, limit=last, window=full)

    def _stage(self) -> Plan:
        """The plan of the segment that begins here, which engine and reporter take over."""
        plan = self.plan.at_batch(self._batch(self.state.scheduled), self.state.micro)
        self.engine.adopt(plan)
        self.reporter.plan = plan
        return plan

    def _batch(self, clock: float) -> int:
        """The global batch of the step at `clock` samples of the schedule."""
        return self.plan.batch_at(clock) * self.state.growth

    def _step_shards(self, plan: Plan, position: int) -> Iterator[StepShards]:
        """This process's part of the steps from `position` on, past the gaps that the guard has left."""
        guard, end, engine = self.state.guard, self.plan.total_samples, self.engine
        while position < end:
            stop = min(guard.next_gap(position, end), end)
            yield from step_shards(
                position, stop, plan.global_batch, plan.micro_batch, plan.world_size, engine.rank, engine.processes
            )
            position = guard.past(stop)

    def _close(self, window: Window, up: Due) -> Generator[Event, None, Outcome]:
        """The end of a window: read and report it, guard the run, and do what is due."""
        before, window.due = self.state, up
        reading, wrong = yield from self._report(window)
        try:
            yield from self._guard(wrong)
        except StopError as e:
            self.ended = ended(self.state, "guard", str(e))
            return Outcome.ENDED
        if self.state.guard.rollbacks > before.guard.rollbacks:
            return Outcome.ROLLED_BACK
        check_counted(self.state, over=up.over)
        self.closing = before, reading, up
        yield from self._finish(*self.closing)
        self.closing = None
        if self.ended is not None:
            return Outcome.ENDED
        return Outcome.CONTINUES if self.state.growth == before.growth else Outcome.BATCH_CHANGED

    def _report(self, window: Window) -> Generator[Event, None, tuple[Reading, dict[Trouble, str]]]:
        """Read the window's numbers and tell them: (what was read, what is wrong)."""
        saver, before = self.saver, self.state
        reading = self.engine.read(window.waited_s, len(self.feed.troubles), save_due=saver.due, save_failed=saver.failed)
        self.window = None
        self.engine.heartbeat.window = rank_window(reading)
        self.stop_check = stop_check_steps(len(reading.steps), reading.ranks.longest_s)
        if reading.ranks.troubles:
            before, notices = meet(before, self.feed, (before.step + len(window.taken), window.position))
            yield from notices
        first = before.step == self.first
        self.state, events, wrong = self.reporter.window(before, reading, window.taken, first=first)
        guard = suspicion(before, self.state, window.position, wrong, self.reporter.uniform_loss)
        if self.state.samples != window.position or guard is not self.state.guard:
            self.state = replace(self.state, samples=window.position, guard=guard)
        yield from events
        yield from self._culprits(before, reading)
        if first and self.config.compute.compile:
            text = f"the first step took {self.reporter.clock.pauses['first_step']:.1f} s, compilation included"
            yield Noticed(self.state.step, self.state.samples, "compiled", text)
        yield from saver.hear(reading.ranks.saves_failed, first=first)
        yield from saver.moved(self.state)
        self.asked = self.asked or saver.lost
        yield from self._notes()
        return reading, wrong

    def _finish(self, before: State, reading: Reading, up: Due, *, evaluated: bool = False) -> Iterator[Event]:
        """Evaluate, save and end, as is due after a window. `before`: the state at its start. `evaluated`: that is done.

        An evaluation that a stop cuts short is due again where the run resumes.
        """
        last = end_reason(up, reading)
        due = self.valid is not None and (up.evaluate or up.over) and not evaluated
        if due != self.state.evaluation_due:  # it may have come with the checkpoint that the guard went back to
            self.state = replace(self.state, evaluation_due=due)
        if last:  # saved before the evaluation, which may fail
            yield from self._save()
        if last != "stop_requested":
            yield from self._evaluate()
        if self.state.evaluation_due:
            yield from self._abandon()
            return
        stale = up.evaluate and self._stale()
        if last:
            yield from self._add_evaluation()
        elif up.save or stale or reading.ranks.saves_due or self._found_best(before):
            yield from self._save()
        if last:
            self.ended = ended(self.state, last)
        elif stale:
            self.ended = self._early_stop()

    def _abandon(self) -> Iterator[Event]:
        """End the run, whose evaluation has to wait for the next start."""
        yield from self._save()
        text = "a stop was asked for: the evaluation that is due here is made when the run resumes"
        yield Noticed(self.state.step, self.state.samples, "evaluation_abandoned", text)
        self.ended = ended(self.state, "stop_requested")

    def _early_stop(self) -> Ended:
        """The end of a run that does not improve any more."""
        by = f" by {self.config.eval.min_delta:g}" if self.config.eval.min_delta else ""
        at = f"no better {self.config.eval.metric}{by} for {self.state.samples - self.state.best_at:,} samples"
        return ended(self.state, "early_stop", at)

    def _stale(self) -> bool:
        """Whether no evaluation has been better for as long as eval.patience allows."""
        patience = self.plan.patience_samples
        return patience is not None and self.state.samples - self.state.best_at >= patience

    def _found_best(self, before: State) -> bool:
        """Whether the best evaluation came since `before`, and its checkpoint is to be kept."""
        return self.config.checkpoint.keep_best > 0 and self.state.best is not before.best

    def _culprits(self, before: State, reading: Reading) -> Iterator[Event]:
        """Name the samples of a window's first step that was not finite. `before`: the state at the window's start."""
        bad = next((number for number, row in enumerate(reading.steps) if row.bad), None)
        if bad is not None:
            shards = next(islice(self._step_shards(self.reporter.plan, before.samples), bad, None))
            text = culprits(self.engine, self.recipe, self.config, self.feed, shards)
            yield Noticed(before.step + bad + 1, shards.start + shards.samples, "nonfinite_samples", text)

    def _guard(self, wrong: dict[Trouble, str]) -> Iterator[Event]:
        """Answer a window's troubles, and follow the noise scale. Raises StopError."""
        before = self.state
        if too_many := spent(before, self.config.guard):
            raise StopError(too_many)
        if wrong:  # wait for a save in progress: then the checkpoint to go back to exists
            yield from self.saver.settle()
        self.state, notices = act(self.config, self.reporter.plan, self.engine, self.saver.places, before, wrong)
        if self.state.guard.interventions > before.guard.interventions:
            self.reporter.alerts.forget()
        yield from notices
        self.state, notices = follow_noise(self.config, self.plan, self.state)
        yield from notices

    def _smaller(self, plan: Plan, error: StepTooLargeError) -> Event:
        """Half the micro-batch after a step that did not fit: the same step again, in more passes. Raises where that cannot be."""
        if self.engine.processes > 1 or plan.micro_batch == 1 or plan.backend != "ddp":
            raise error
        smaller = self.plan.at_batch(plan.global_batch, plan.micro_batch // 2)
        self.state = replace(self.state, micro=smaller.micro_batch)
        text = f"a pass of {plan.micro_batch} samples did not fit in memory: the step is done again in {smaller.passes} passes"
        return Noticed(self.state.step, self.state.samples, "out_of_memory", f"{text} of {smaller.micro_batch}")

    def _evaluate(self) -> Iterator[Event]:
        """The evaluation that is due, if one is; where a stop is asked for meanwhile, it stays due."""
        if self.valid is None or not self.state.evaluation_due:
            return
        look = StopLook(self.engine, lambda: self.asked or self.stop())
        try:
            with self.reporter.clock.pause("eval"):
                found, examples = evaluate(self.engine, self.recipe, self.config, self.valid, look)
                found |= diagnostics(self.engine, self.recipe, self.config.eval, self.feed, look)
        except AbandonedError:
            return
        if self.engine.any_rank(bool(self.valid.troubles)):
            self.state, notices = meet(self.state, self.valid, (self.state.step, self.state.samples), valid=True)
            yield from notices
        yield from self._take_evaluation(found, examples)

    def _take_evaluation(self, found: dict[str, float], examples: list[dict[str, Any]]) -> Iterator[Event]:
        """Take over what was measured at the current state: the best so far, the patience and the plateau rule follow it."""
        metrics: Metrics = dict(found)
        check_metric(self.config, list(metrics))
        s = self.evaluated_at = self.state.samples
        best, again = better(self.config, self.state, metrics), patience_again(self.config, self.state, metrics)
        self.state = replace(
            self.state, evaluation_due=False, last=dict(metrics), health=self.state.health.after_validation(found["eval/loss"])
        )
        if best:
            self.state = replace(self.state, best=dict(metrics))
        if again:
            self.state = replace(self.state, best_at=s, best_then=metrics[self.config.eval.metric])
        gap = {"eval/generalization_gap": self.reporter.gap(metrics["eval/loss"])}
        yield Evaluated(self.state.step, s, self.reporter.progress(self.state) | metrics | gap, best)
        if examples:
            yield Shown(self.state.step, s, examples)
        self.state, notices = on_plateau(self.config, self.plan, self.state, metrics)
        yield from notices

    def _save(self) -> Iterator[Event]:
        """Begin a checkpoint; training continues while it is written."""
        yield from self.saver.save(self.state, self._judged())

    def _add_evaluation(self) -> Iterator[Event]:
        """Give the run's last checkpoint the evaluation that followed it."""
        yield from self.saver.add_evaluation(self.state, self._judged())

    def _judged(self) -> Metrics:
        found: Metrics = self.state.last if self.evaluated_at == self.state.samples else {}
        return judged(self.config, self.state, found, self.reporter.uniform_loss)
