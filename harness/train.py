"""The loop: train(config, plan) yields frozen events. Whoever listens cannot steer.

What steers is in here and agreed over ranks: the skip of a step that is not finite, the plateau rule, the stop on request.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.engine.engine import Engine
from harness.engine.open import open_engine
from harness.engine.state import State
from harness.evaluate import evaluate
from harness.parts.data import Feed
from harness.parts.recipe import Recipe, load_recipe
from harness.plan.config import Config
from harness.plan.decode import encode
from harness.plan.errors import UserError
from harness.plan.order import Order, deals, derive
from harness.plan.plan import Plan
from harness.resuming import resume
from harness.saving import NotSavedError, save
from harness.stats.events import Ended, Evaluated, Event, Metrics, Noticed, Saved, Shown, Started
from harness.stats.rows import StepRow
from harness.telling import Teller


def train(
    config: Config,
    plan: Plan,
    *,
    cpu: bool = False,
    folder: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Train `config` as `plan` says, on the processes that are here, and yield what happens.

    `folder` is the run folder: with one, checkpoints are written there, and a run that has some goes on. `stop` is asked once a
    step; when it says yes on any rank, all save and end at the close of the window. Raises UserError before the first step.
    """
    recipe = load_recipe(config.recipe)
    data = recipe.data("train")
    _check_data(plan, len(data))
    run = _Run(config, plan, recipe, open_engine(config, plan, recipe, cpu=cpu), folder, stop)
    order = Order(len(data), derive(config.run.seed, 3))
    key_seed = derive(config.run.seed, 4) if recipe.augments else None
    engine = run.engine
    options = {"device": engine.device, "dtype": engine.dtype, "collate": recipe.collate, "workers": recipe.workers}
    run.feed = Feed(data, order=order, key_seed=key_seed, **options)  # type: ignore[arg-type]
    run.valid = Feed(recipe.data("valid"), order=None, key_seed=key_seed, **options)  # type: ignore[arg-type]
    run.teller = Teller(config, plan, recipe, engine, data, len(run.valid.data))
    notices = list(run.resume())
    size = sum(p.numel() for p in engine.model.parameters())
    state = run.state
    yield Started(plan, encode(config), str(folder or ""), state.step, state.samples, size, str(engine.device), engine.estimator)
    yield from notices
    yield from (Noticed(state.step, state.samples, w.code, w.message) for w in plan.warnings)
    yield from run.steps()


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
    state: State = field(default_factory=lambda: State(began=time.time()))
    teller: Teller = field(init=False)
    feed: Feed = field(init=False)
    valid: Feed = field(init=False)
    saved_at: int = -1
    evaluated_at: int = -1

    def resume(self) -> Iterator[Event]:
        """Take over the newest good checkpoint of the run folder, if there is one."""
        if self.folder is None:
            return
        state, notices = resume(self.engine, self.config, self.plan, len(self.feed.data), self.folder)
        if state is not None:
            self.state = state
            self.saved_at = self.teller.saved_at_samples = state.samples
        yield from notices

    def steps(self) -> Iterator[Event]:
        """All steps from where the state stands to the plan's end."""
        plan, config, engine = self.plan, self.config, self.engine
        first, asked = self.state.step, False
        pending: list[tuple[int, float]] = []
        position = self.state.samples
        dealt = deals(
            position,
            plan.total_samples,
            plan.global_batch,
            plan.micro_batch,
            plan.world_size,
            engine.rank,
            engine.processes,
        )
        waited = 0.0
        self.teller.clock.discard("start")
        feed = self.feed.steps(dealt)
        while True:
            begin = time.perf_counter()
            fetched = next(feed, None)
            if fetched is None:
                break
            waited += time.perf_counter() - begin
            deal, micros = fetched
            lr = plan.lr_at(position - self.state.skipped_samples) * self.state.plateau.factor
            asked = asked or self.stop()
            before, position = position, position + deal.samples
            pending.append((deal.samples, lr))
            taken = self.state.step + len(pending) - first
            over = position >= plan.total_samples
            limit = taken == config.run.stop_after_steps
            evaluate_now = over or _crossed(before, position, plan.eval_every_samples)
            save_now = over or limit or _crossed(before, position, plan.checkpoint_every_samples)
            close = taken == 1 or len(pending) == config.watch.every_steps or evaluate_now or save_now
            engine.step(micros, lr, asked, close=close)
            if not close:
                continue
            reading = engine.read(waited)
            rows, waited = reading.steps, 0.0
            self.state, told = self.teller.window(self.state, reading, pending, first=taken == 1)
            yield from told
            if taken == 1 and config.compute.compile:
                text = f"the first step took {self.teller.clock.pauses['first_step']:.1f} s, compilation included"
                yield Noticed(self.state.step, self.state.samples, "compiled", text)
            pending = []
            failed = self._guard(rows)
            wanted = any(row.stop > 0 for row in rows)
            if evaluate_now and not failed:
                yield from self._evaluate()
            if (save_now or wanted) and not failed:
                yield from self._save()
            if over or failed or limit or wanted:
                yield self._end(
                    "guard" if failed else "complete" if over else "stop_after_steps" if limit else "stop_requested",
                    failed,
                )
                return
        yield self._end("complete", "")

    def _guard(self, rows: Sequence[StepRow]) -> str:
        """Why the run must stop, or nothing."""
        guard, bad = self.config.guard, sum(r.bad for r in rows)
        if bad and guard.nonfinite == "stop":
            return "a loss or gradient was not finite, and guard.nonfinite is stop"
        if self.state.nonfinite_steps > guard.budget:
            return (
                f"{self.state.nonfinite_steps} steps were not finite, more than guard.budget {guard.budget}: "
                f"lr {self.plan.target_lr:g} (rule {self.plan.rule} at k = {self.plan.ratio:g}) is likely too high; "
                "try scaling.rule sqrt, a longer warm-up, or a smaller batch"
            )
        return ""

    def _evaluate(self) -> Iterator[Event]:
        if self.evaluated_at == self.state.samples:
            return
        with self.teller.clock.pause("eval"):
            metrics, examples = evaluate(self.engine, self.recipe, self.config, self.valid)
        loss, s, shape = metrics["eval/loss"], self.state, self.plan.schedule
        best = s.best.get("eval/loss")
        better = math.isfinite(loss) and (best is None or loss < best)
        plateau = s.plateau
        if shape.shape == "plateau":
            plateau = plateau.after(loss, s.samples, patience=shape.every, gamma=shape.gamma, floor=shape.final_fraction)
        self.state = replace(s, best=dict(metrics) if better else s.best, last=dict(metrics), plateau=plateau)
        self.evaluated_at = s.samples
        gap: Metrics = {"eval/generalization_gap": self.teller.gap(loss)}
        yield Evaluated(s.step, s.samples, self.teller.progress(s) | metrics | gap, better)
        if examples:
            yield Shown(s.step, s.samples, examples)
        if plateau.factor != s.plateau.factor:
            text = f"no better eval/loss for {shape.every} samples: lr x {plateau.factor:g} from here"
            yield Noticed(s.step, s.samples, "plateau", text)

    def _save(self) -> Iterator[Event]:
        if self.folder is None or self.saved_at == self.state.samples:
            return
        plan, state, begin = self.plan, self.state, time.monotonic()
        about = {
            "dataset": len(self.feed.data),
            "seed": self.config.run.seed,
            "optimizer": plan.optimizer,
            "world_size": plan.world_size,
            "global_batch": plan.global_batch,
            "lr": plan.target_lr,
        }
        try:
            with self.teller.clock.pause("checkpoint"):
                path = save(self.engine, self.folder / "checkpoints", state, about, self.config.checkpoint.keep)
        except NotSavedError as e:
            yield Noticed(state.step, state.samples, "checkpoint_failed", f"checkpoint not written: {e}")
            return
        self.saved_at = state.samples
        size = sum(f.stat().st_size for f in path.iterdir()) if self.engine.rank == 0 else 0
        seconds = time.monotonic() - begin
        self.teller.saved(state.samples, seconds, size)
        yield Saved(state.step, state.samples, str(path), seconds, size)

    def _end(self, reason: str, message: str) -> Ended:
        s = self.state
        metrics = {f"best/{k.partition('/')[2]}": v for k, v in s.best.items()} | s.last
        return Ended(s.step, s.samples, reason, message, metrics)


def _crossed(before: int, after: int, every: int | None) -> bool:
    """Whether a multiple of `every` samples lies in (before, after]."""
    return every is not None and after // every > before // every
