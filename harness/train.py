"""The loop: train(config, plan) yields frozen events. Whoever listens cannot steer.

What steers is in here and agreed over ranks: a step that is not finite, the guard, a batch that changes, the stop on request.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from harness.adapting import better, follow_noise, on_plateau
from harness.engine.engine import Engine
from harness.engine.open import open_engine
from harness.engine.state import State
from harness.evaluate import evaluate, sharpness
from harness.faults import meet, spent, take_up
from harness.guarding import StopError, act, limit, suspicion
from harness.pace import Taken, pace
from harness.parts.data import Feed
from harness.parts.recipe import Recipe, load_recipe
from harness.plan.config import Config
from harness.plan.decode import encode
from harness.plan.due import NOTHING, Due, due, quiet_until
from harness.plan.errors import UserError, did_you_mean
from harness.plan.guard import Trouble, policy
from harness.plan.order import Deal, Order, deals, derive
from harness.plan.plan import Plan
from harness.resuming import aged, anew, facts_of, resume
from harness.saving import Saver, Saves, Unsaved
from harness.stats.events import Ended, Evaluated, Event, Metrics, Noticed, Shown, Started
from harness.survive.pulse import Pulse
from harness.telling import Teller


def train(
    config: Config,
    plan: Plan,
    *,
    cpu: bool = False,
    folder: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
    engine: Engine | None = None,
    pulse: Pulse | None = None,
) -> Iterator[Event]:
    """Train `config` as `plan` says, on the processes that are here, and yield what happens.

    `folder` is the run folder: with one, checkpoints are written there, and a run that has some goes on. `stop` is asked once a
    step; when it says yes on any rank, all save and end at the close of the window. Raises UserError before the first step.
    `engine`: one that was opened for this plan; None: that of the run file's backend. `pulse` is told that the loop goes on.
    """
    recipe = load_recipe(config.recipe)
    data = recipe.data("train")
    _check_data(plan, len(data))
    run = _Run(config, plan, recipe, engine or open_engine(config, plan, recipe, cpu=cpu), folder, stop)
    order = Order(len(data), derive(config.run.seed, 3))
    key_seed = derive(config.run.seed, 4) if recipe.augments else None
    engine = run.engine
    engine.pulse = pulse or engine.pulse
    options = {"device": engine.device, "dtype": engine.dtype, "collate": recipe.collate, "workers": recipe.workers}
    options |= {"key_seed": key_seed, "faults": config.data}
    run.feed = Feed(data, order=order, **options)  # type: ignore[arg-type]
    run.valid = Feed(recipe.data("valid"), order=None, **options)  # type: ignore[arg-type]
    run.teller = Teller(config, plan, recipe, engine, run.feed, len(run.valid.data))
    notices = list(run.resume())
    state = run.state
    told = (engine.parameters(), str(engine.device), engine.estimator, state.began)
    yield Started(plan, encode(config), str(folder or ""), state.step, state.samples, *told)
    yield from notices
    yield from (Noticed(state.step, state.samples, w.code, w.message) for w in plan.warnings)
    try:
        yield from run.steps()
    finally:
        run.saver.close()


def _check_data(plan: Plan, found: int) -> None:
    if plan.dataset_samples is not None and plan.dataset_samples != found:
        at = f"is {plan.dataset_samples}, but the recipe's data has {found} samples"
        raise UserError("recipe.samples", at, f"write {found} or leave it out")
    if found == 0:
        raise UserError("recipe.use", "the recipe's data is empty", "give it samples")


@dataclass
class _Run:
    """A run in progress: what `train` would otherwise hold in twenty local variables."""

    config: Config
    plan: Plan
    recipe: Recipe
    engine: Engine
    folder: Path | None
    stop: Callable[[], bool]
    state: State = field(default_factory=State)
    teller: Teller = field(init=False)
    feed: Feed = field(init=False)
    valid: Feed = field(init=False)
    saver: Saves = field(default_factory=Unsaved)
    evaluated_at: int = -1
    first: int = 0
    asked: bool = False
    ended: Ended | None = None

    def resume(self) -> Iterator[Event]:
        """Take over the newest good checkpoint of the run, if there is one, and be ready to write the next."""
        if self.folder is None:
            return
        facts = facts_of(self.config, self.plan, self.recipe, self.feed.data)
        state, notices = resume(self.engine, self.config, facts, self.folder)
        if state is not None:
            self.teller.saved_at_samples = state.samples
            take_up(state, self.feed, self.valid)
        self.state = state or anew(self.folder)
        self.teller.age, of_age = aged(self.state)
        self.state = replace(self.state, began=self.teller.age.began)
        self.saver = Saver(self.engine, self.config, self.folder, self.teller, asdict(facts), state)
        yield from notices + of_age

    def steps(self) -> Iterator[Event]:
        """All steps from where the state stands to the end of the run."""
        self.first = self.state.step
        if not self.saver.saved and "roll_back" in policy(self.config.guard).values():
            yield from self._save()
        self.teller.clock.discard("start")
        while self.ended is None:
            yield from self._stretch()
        yield from self.saver.settle()
        yield self.ended

    def _stretch(self) -> Iterator[Event]:
        """Steps of one batch and one split, to the end of the run or to where one of them changes."""
        plan, state, engine = self._stage(), self.state, self.engine
        now, most = pace(plan, state), limit(self.config, state)
        position, clock, turn = state.guard.past(state.samples), state.scheduled, False
        quiet = quiet_until(self.plan, position)
        taken: list[Taken] = []
        waited = 0.0
        feed = self.feed.steps(self._deals(plan, position))
        engine.begin()
        while not turn:
            begin = time.perf_counter()
            fetched = next(feed, None)
            if fetched is None:
                self.ended = self.ended or self._end("complete")
                return
            waited += time.perf_counter() - begin
            deal, micros = fetched
            step = now.step(position, clock, deal.samples)
            after, clock_after = state.guard.past(deal.start + deal.samples), clock + step.advance
            count = state.step + len(taken) + 1 - self.first
            ends = count == self.config.run.stop_after_steps
            full = count == 1 or len(taken) + 1 == self.config.watch.every_steps
            loud = ends or full or after >= quiet
            next_up = due(self.plan, position, after, clock_after, limit=ends, window=full) if loud else NOTHING
            turn = not next_up.over and self._batch(clock_after) != plan.global_batch
            close = next_up.close or turn
            self.asked = self.asked or self.stop()
            try:
                engine.step(micros, step.lr, self.asked, close=close, limit=most)
            except torch.OutOfMemoryError as e:
                yield from self._close(taken, position, waited, Due()) if taken else ()
                yield self._smaller(plan, e)
                return
            taken.append(step)
            position, clock = after, clock_after
            if not close:
                continue
            before = self.state
            yield from self._close(taken, position, waited, next_up)
            state, taken, waited = self.state, [], 0.0
            if self.ended is not None or state.guard.rollbacks > before.guard.rollbacks or state.growth != before.growth:
                return
            now, most, clock = pace(plan, state), limit(self.config, state), state.scheduled
            quiet = quiet_until(self.plan, position)
            engine.begin()

    def _stage(self) -> Plan:
        """The plan of the stretch that begins here, which engine and teller take over."""
        plan = self.plan.at_batch(self._batch(self.state.scheduled), self.state.micro)
        self.engine.adopt(plan)
        self.teller.plan = plan
        return plan

    def _batch(self, clock: float) -> int:
        """The global batch of the step at `clock` samples of the schedule."""
        return self.plan.batch_at(clock) * self.state.growth

    def _deals(self, plan: Plan, position: int) -> Iterator[Deal]:
        """This process's part of the steps from `position` on, past the gaps that the guard has left."""
        guard, end, engine = self.state.guard, self.plan.total_samples, self.engine
        while position < end:
            stop = min(guard.next_gap(position, end), end)
            yield from deals(position, stop, plan.global_batch, plan.micro_batch, plan.world_size, engine.rank, engine.processes)
            position = guard.past(stop)

    def _close(self, taken: list[Taken], position: int, waited: float, up: Due) -> Iterator[Event]:
        """The end of a window: tell it, guard it, and do what is up."""
        saver, before = self.saver, self.state
        reading = self.engine.read(waited, len(self.feed.troubles), save_due=saver.due, save_failed=saver.failed)
        if reading.ranks.troubles:
            before, notices = meet(before, self.feed, (before.step + len(taken), position))
            yield from notices
        warmed = before.step == self.first
        self.state, told, wrong = self.teller.window(before, reading, taken, first=warmed)
        guard = suspicion(before, self.state, position, wrong, self.recipe.uniform_loss())
        if self.state.samples != position or guard is not self.state.guard:
            self.state = replace(self.state, samples=position, guard=guard)
        yield from told
        if warmed and self.config.compute.compile:
            text = f"the first step took {self.teller.clock.pauses['first_step']:.1f} s, compilation included"
            yield Noticed(self.state.step, self.state.samples, "compiled", text)
        yield from saver.hear(reading.ranks.saves_failed, first=warmed)
        try:
            yield from self._guard(wrong)
        except StopError as e:
            self.ended = self._end("guard", str(e))
            return
        if self.state.samples != position:  # rolled back: nothing of this window is to be kept
            return
        wanted = any(row.stop > 0 for row in reading.steps)
        if up.evaluate or up.over:
            yield from self._evaluate()
        stale = self.plan.patience_samples is not None and self.state.samples - self.state.best_at >= self.plan.patience_samples
        best = self.config.checkpoint.keep_best > 0 and self.state.best is not before.best
        if up.save or up.over or up.limit or wanted or best or reading.ranks.saves_due or (stale and up.evaluate):
            yield from self._save()
        if up.over or up.limit or wanted:
            self.ended = self._end("complete" if up.over else "stop_after_steps" if up.limit else "stop_requested")
        elif stale and up.evaluate:
            at = f"no better {self.config.eval.metric} for {self.state.samples - self.state.best_at:,} samples"
            self.ended = self._end("early_stop", at)

    def _guard(self, wrong: dict[Trouble, str]) -> Iterator[Event]:
        """Answer a window's troubles, and follow the noise scale. Raises StopError."""
        before = self.state
        if too_many := spent(before, self.config.guard):
            raise StopError(too_many)
        if wrong:  # what may be gone back to is there, and nothing newer comes after it
            yield from self.saver.settle()
        self.state, notices = act(self.config, self.teller.plan, self.engine, self.folder, before, wrong)
        if self.state.guard.interventions > before.guard.interventions:
            self.teller.noticer.forget()
        yield from notices
        self.state, notices = follow_noise(self.config, self.plan, self.state)
        yield from notices

    def _smaller(self, plan: Plan, error: torch.OutOfMemoryError) -> Event:
        """Half the micro-batch after a pass that did not fit: the same step again, in more passes. Raises where that cannot be."""
        if self.engine.processes > 1 or plan.micro_batch == 1 or plan.backend != "ddp":
            raise error
        smaller = self.plan.at_batch(plan.global_batch, plan.micro_batch // 2)
        self.state = replace(self.state, micro=smaller.micro_batch)
        text = f"a pass of {plan.micro_batch} samples did not fit in memory: the step is done again in {smaller.passes} passes"
        return Noticed(self.state.step, self.state.samples, "out_of_memory", f"{text} of {smaller.micro_batch}")

    def _evaluate(self) -> Iterator[Event]:
        if self.evaluated_at == self.state.samples:
            return
        with self.teller.clock.pause("eval"):
            found, examples = evaluate(self.engine, self.recipe, self.config, self.valid)
            if self.config.eval.sharpness:
                found["eval/sharpness"] = sharpness(self.engine, self.recipe, self.feed, self.config.eval.sharpness)
        if self.engine.any_rank(bool(self.valid.troubles)):
            self.state, notices = meet(self.state, self.valid, (self.state.step, self.state.samples), valid=True)
            yield from notices
        metrics: Metrics = dict(found)
        name = self.config.eval.metric
        if name not in metrics:
            raise UserError("eval.metric", f"the recipe gives no {name}", did_you_mean(name, list(metrics)))
        s = self.evaluated_at = self.state.samples
        best = better(self.config, self.state, metrics)
        self.state = replace(self.state, last=dict(metrics), health=self.state.health.after_validation(found["eval/loss"]))
        if best:
            self.state = replace(self.state, best=dict(metrics), best_at=s)
        gap = {"eval/generalization_gap": self.teller.gap(metrics["eval/loss"])}
        yield Evaluated(self.state.step, s, self.teller.progress(self.state) | metrics | gap, best)
        if examples:
            yield Shown(self.state.step, s, examples)
        self.state, notices = on_plateau(self.config, self.plan, self.state, metrics)
        yield from notices

    def _save(self) -> Iterator[Event]:
        """Begin a checkpoint; training goes on while it is written."""
        s = self.state
        found: Metrics = s.last if self.evaluated_at == s.samples else {}
        value = found.get(self.config.eval.metric)
        score = -value if value is not None and self.config.eval.better == "higher" else value
        yield from self.saver.save(s, {"score": score, "well": s.health.well(self.recipe.uniform_loss(), found.get("eval/loss"))})

    def _end(self, reason: str, message: str = "") -> Ended:
        s = self.state
        if s.guard.interventions and not message:
            message = f"the guard stepped in {s.guard.interventions}x and rolled back {s.guard.rollbacks}x, "
            message += f"lr x {s.guard.brake.at(s.samples):.3g} at the end"
        metrics = {f"best/{k.partition('/')[2]}": v for k, v in s.best.items()} | s.last
        return Ended(s.step, s.samples, reason, message, metrics)
