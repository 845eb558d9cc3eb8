"""Resuming: the newest good checkpoint is loaded and changed settings are reported, or the run is refused with the reason."""

from collections.abc import Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from harness.analysis.journal_lines import MOST, finite
from harness.analysis.journal_tail import began, last_window, starts
from harness.checkpoint import reader as checkpoint
from harness.checkpoint.train_state import State
from harness.config.errors import UserError
from harness.config.resume_rules import changes, saved_form
from harness.config.run_folder import RunFolder
from harness.config.schema import Config
from harness.data.feed import Data
from harness.engine.initial_model import unsaved
from harness.engine.interface import Engine
from harness.modeling.tensor_digest import close
from harness.plan.plan import Plan
from harness.plan.plan_warnings import SHOWN
from harness.recipes.base import Recipe
from harness.recipes.fingerprint import fingerprint
from harness.telemetry.clock import Age
from harness.telemetry.events import Noticed
from harness.telemetry.noise_scale import NoiseScale
from harness.training.guard import recall


@dataclass(frozen=True)
class _Place:
    """Where the checkpoints are, and the setting that says so."""

    where: str
    setting: str

    def __str__(self) -> str:
        return self.where

    @property
    def another(self) -> str:
        """How a new run begins instead."""
        return f"give another {self.setting}"


@dataclass(frozen=True)
class Facts:
    """What a checkpoint records of its run, to compare with the run that resumes from it.

    `warned`: codes of the plan's warnings.
    """

    dataset: int
    fingerprint: str
    world_size: int
    global_batch: int
    lr: float
    config: dict[str, Any]
    warned: tuple[str, ...] = ()
    unsaved: dict[str, list[float]] = field(default_factory=dict)
    """Sketches of the fresh model's buffers that are in no checkpoint."""
    frozen: dict[str, str] | None = None
    """Digests of the fresh weights that are not trained; None in checkpoints of earlier versions, which hold these weights."""
    derived: dict[str, float] = field(default_factory=dict)
    """What the plan derived for the optimizer beside lr, by name; empty in checkpoints of earlier versions."""


def facts_of(config: Config, plan: Plan, recipe: Recipe, data: Data, engine: Engine) -> Facts:
    """The facts of this run; `engine` has its fresh model."""
    return Facts(
        dataset=len(data),
        fingerprint=fingerprint(recipe, data),
        world_size=plan.world_size,
        global_batch=plan.global_batch,
        lr=plan.target_lr,
        config=saved_form(config),
        warned=tuple(w.code for w in plan.warnings[:SHOWN]),
        unsaved=unsaved(engine.model),
        frozen=dict(engine.base),
        derived=_derived(plan),
    )


def _derived(plan: Plan) -> dict[str, float]:
    beta1, beta2 = plan.betas or (None, None)
    numbers = {"weight_decay": plan.weight_decay, "beta1": beta1, "beta2": beta2, "alpha": plan.alpha, "eps": plan.eps}
    return {name: number for name, number in numbers.items() if number is not None}


def same_scale(state: State, estimator: str) -> State:
    """The state from which the noise scale is measured on by `estimator`: reset where it was measured by moments and is not now, or
    the reverse."""
    other = state.noise_by and (state.noise_by == "moments") != (estimator == "moments")
    return replace(state, noise=NoiseScale() if other else state.noise, noise_by=estimator)


def resume(engine: Engine, config: Config, facts: Facts, folder: Path) -> tuple[State | None, list[Noticed]]:
    """(where the run stands, None if it has no checkpoint; the notices).

    Weights and optimizer state are loaded into the engine; the plan's numbers stay. Raises UserError if the checkpoint is of
    another run.
    """
    where = _Place(RunFolder(folder).checkpoints(config), RunFolder(folder).place_setting(config))
    found, complaints = checkpoint.newest(where.where)
    if found is None:
        if complaints:
            at = f"none of the {len(complaints)} checkpoints in {where} can be used ({complaints[0]})"
            raise UserError(where.setting, at, f"restore one, or {where.another} to start from scratch")
        return None, []
    before, warned = _facts_before(found, facts, where)
    _check_growth(found.state, config, where)
    engine.load(found.tensors)
    _check_numbers(engine, found, where)
    recalled, problem = recall(folder, found.state)
    state = _again(recalled, folder)
    text = f"resuming from {found.name} at step {state.step}: {_since(before, facts)}{_about_average(found, engine.plan)}"
    if state.samples >= engine.plan.total_samples:
        text += f"; nothing is left to train: raise schedule.{_length(config)}, or {where.another} to begin a new run"
    told = [("damaged_checkpoint", f"not used: {complaint}") for complaint in complaints]
    told += [("guard", problem)] if problem else []
    told += [("resumed", text), *(("changed", warning) for warning in warned)]
    told += [(w.code, w.message) for w in engine.plan.warnings[:SHOWN] if w.code not in before.warned]
    return state, [Noticed(state.step, state.samples, code, message) for code, message in told]


def _since(before: Facts, facts: Facts) -> str:
    """World, batch and rate, and other numbers of the optimizer that have changed; where one has changed, both values."""
    values = (before.world_size, facts.world_size), (before.global_batch, facts.global_batch), (before.lr, facts.lr)
    ranks, batch, lr = (f"{was:g}" if was == now else f"{was:g} -> {now:g}" for was, now in values)
    others = ((name, was, facts.derived.get(name, was)) for name, was in before.derived.items())
    changed = "".join(f", {name} {was:g} -> {now:g}" for name, was, now in others if was != now)
    return f"{ranks} rank{'s' * (ranks != '1')}, global batch {batch}, lr {lr}{changed}"


def _length(config: Config) -> str:
    """The setting of section schedule that says how long the run is."""
    s = config.schedule
    return next(name for name in ("epochs", "samples", "tokens", "tokens_per_parameter") if getattr(s, name) is not None)


def _facts_before(found: checkpoint.Checkpoint, facts: Facts, where: _Place) -> tuple[Facts, list[str]]:
    """(the facts that a checkpoint holds, what has changed since that a person should know). Raises UserError."""
    try:
        before = msgspec.convert(found.about, Facts)
        warned = _compared(before, facts, where)
        _check_base(before, facts, {name.removeprefix("model/") for name in found.tensors}, where)
    except (TypeError, AttributeError, ValueError) as e:
        at = f"{found.name} in {where} was written by another version or is damaged ({e})"
        remedy = f"remove that checkpoint: the run then resumes from the one before; or {where.another}"
        raise UserError(where.setting, at, remedy) from e
    return before, warned


def _about_average(found: checkpoint.Checkpoint, plan: Plan) -> str:
    """What becomes of the average of the weights, where checkpoint and plan do not agree on having one."""
    had = any(name.startswith("ema/") for name in found.tensors)
    if had and plan.ema is None:
        return "; its average of the weights is dropped, as optim.ema is unset"
    if plan.ema is not None and not had:
        return "; it has no average of the weights, so that begins here"
    return ""


def _check_growth(state: State, config: Config, where: _Place) -> None:
    """Raises UserError if the batch has grown past what the run file allows."""
    most = config.batch.most
    if state.growth > (most or 1):
        at = f"is {most or 'unset'}, but the checkpoint trains at {state.growth:,} times the planned batch"
        raise UserError("batch.most", at, f"set it as it was, or {where.another}")


def _check_base(before: Facts, now: Facts, saved: Set[str], where: _Place) -> None:
    """Raises UserError if other weights are trained, or frozen weights differ. Frozen weights that are `saved` are not compared."""
    if before.frozen is None or now.frozen is None:
        return
    for name in sorted({*before.frozen, *now.frozen}):
        there, here = before.frozen.get(name), now.frozen.get(name)
        if there is None or here is None:
            how = "is frozen, but was trained" if there is None else "was frozen"
            at = f"{name} {how} in {where}: other weights are trained here"
            raise UserError("recipe.use", at, "train the same weights, or begin a new run from `widebatch export`'s file")
        if there != here and name not in saved:
            at = f"the frozen weight {name} is not the one that {where} was trained with: model() has a different base model"
            raise UserError("recipe.use", at, f"use that base model again, or {where.another}")


def _check_numbers(engine: Engine, found: checkpoint.Checkpoint, where: _Place) -> None:
    """Raises UserError, on every rank, where a number that was loaded makes no sense: the next steps would ruin the weights."""
    bad = engine.not_finite()
    odd = f"weights that are not finite ({bad})" if bad else next(iter(found.odd), "")
    if engine.any_rank(bool(odd)):
        at = f"{found.name} in {where} holds {odd or 'numbers on another rank that are not possible'}"
        raise UserError(where.setting, at, "remove that checkpoint: the run then resumes from the one before")


def _compared(before: Facts, now: Facts, where: _Place) -> list[str]:
    """What has changed that a person should know. Raises UserError if it is another run."""
    if before.dataset != now.dataset:
        at = f"{where} was trained on {before.dataset} samples, the data now has {now.dataset}"
        raise UserError(where.setting, at, where.another)
    if before.fingerprint != now.fingerprint:
        at = f"{where} was trained on other data of as many samples (fingerprint {before.fingerprint}, now {now.fingerprint})"
        raise UserError(where.setting, at, f"restore the data, or {where.another}")
    warned = list[str]()
    changed = changes(before.config, now.config)
    odd = next((name for name, numbers in before.unsaved.items() if not close(numbers, now.unsaved.get(name, numbers))), None)
    if odd is not None:
        at = f"buffer {odd} is not saved (persistent=False), and model() makes a different one than in {where}"
        if not any(c.setting.startswith(("recipe.", "precision")) for c in changed):
            remedy = "draw it from torch, numpy.random or random, which are seeded, or register it with persistent=True"
            raise UserError("recipe.use", at, remedy)
        warned.append(at)
    for c in changed:
        if c.kind == "refuse":
            problem, remedy = c.reason.split(": ", 1)
            at = f"is {c.now}, but {where} was begun with {c.before}, and {problem}"
            raise UserError(c.setting, at, f"{remedy}, or {where.another}")
        if c.kind == "warn":
            warned.append(f"{c.setting}: {c.before} -> {c.now} since the checkpoint" + (f"; {c.reason}" if c.reason else ""))
    return warned


def fresh_state(folder: Path) -> State:
    """The state of a run without a checkpoint, whether or not it was started before."""
    journal = RunFolder(folder).journal
    return _again(State(began=began(journal)), folder) if starts(journal) else State()


def _again(state: State, folder: Path) -> State:
    """The state to go back to, with what the journal says about the starts until now."""
    journal = RunFolder(folder).journal
    last, restarts = last_window(journal), max(state.restarts + 1, starts(journal))
    nowhere = max(finite(last.get("progress/trained_s")) - state.trained_s, 0.0)
    seen = finite(last.get("progress/samples_trained", last.get("progress/samples")))
    return replace(
        state,
        restarts=restarts,
        lost_s=max(state.lost_s, finite(last.get("reliability/lost_s")) + nowhere),
        rolled_back_s=max(state.rolled_back_s, finite(last.get("reliability/rolled_back_s"))),
        discarded_samples=max(state.discarded_samples, int(min(seen, MOST)) - state.samples),
    )


def aged(state: State) -> tuple[Age, list[Noticed]]:
    """How old the run is that resumes from this state, and the notices about it."""
    if not state.restarts:
        return Age(), []
    age = Age.of(state.began, state.trained_s + state.lost_s)
    if age.before_s is not None or state.began is None:
        return age, []
    text = "the clock was set back: the age of the run and reliability/goodput_pct are unknown"
    return age, [Noticed(state.step, state.samples, "clock", text)]
