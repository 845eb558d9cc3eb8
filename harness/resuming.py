"""A run goes on: the newest good checkpoint is taken over, with what has changed since; or it is said why that must not be."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.engine import checkpoint
from harness.engine.engine import Engine
from harness.engine.state import State
from harness.guarding import recall
from harness.parts.data import Data
from harness.parts.fingerprint import fingerprint
from harness.parts.recipe import Recipe
from harness.plan.changes import changes, saved_form
from harness.plan.config import Config
from harness.plan.errors import UserError
from harness.plan.plan import Plan
from harness.saving import place
from harness.stats.clock import Age
from harness.stats.events import Noticed
from harness.stats.past import began, last_window, starts


@dataclass(frozen=True)
class Facts:
    """What a checkpoint tells of its run, to be held against the run that goes on from it."""

    dataset: int
    fingerprint: str
    world_size: int
    global_batch: int
    lr: float
    config: dict[str, Any]


def facts_of(config: Config, plan: Plan, recipe: Recipe, data: Data) -> Facts:
    """The facts of this run."""
    print_of = fingerprint(recipe, data)
    return Facts(len(data), print_of, plan.world_size, plan.global_batch, plan.target_lr, saved_form(config))


def resume(engine: Engine, config: Config, facts: Facts, folder: Path) -> tuple[State | None, list[Noticed]]:
    """(where the run stands, None where it has no checkpoint; what there is to tell).

    Weights and optimizer state are loaded into the engine; the plan's numbers stay. Raises UserError where the checkpoint is of
    another run.
    """
    where = place(config, folder)
    found, complaints = checkpoint.newest(where)
    if found is None:
        if complaints:
            at = f"none of the {len(complaints)} checkpoints in {where} can be used ({complaints[0]})"
            raise UserError("run.dir", at, "restore one, or give another run.dir to start anew")
        return None, []
    try:
        before = Facts(**{key: value for key, value in found.about.items() if key in Facts.__dataclass_fields__})
        warned = _compared(before, facts, where)
    except (TypeError, AttributeError) as e:
        raise UserError("run.dir", f"{found.name} in {where} is of another version ({e})", "give another run.dir") from e
    engine.load(found.tensors)
    state = _again(recall(folder, found.state), folder)
    text = f"going on from {found.name} at step {state.step}: {before.world_size} -> {facts.world_size} ranks, "
    text += f"global batch {before.global_batch} -> {facts.global_batch}, lr {before.lr:g} -> {facts.lr:g}"
    had = any(name.startswith("ema/") for name in found.tensors)
    if had and engine.plan.ema is None:
        text += "; its average of the weights is dropped, as optim.ema is unset"
    elif engine.plan.ema is not None and not had:
        text += "; it has no average of the weights, so that begins here"
    told = [("damaged_checkpoint", f"not used: {complaint}") for complaint in complaints]
    told += [("resumed", text), *(("changed", warning) for warning in warned)]
    return state, [Noticed(state.step, state.samples, code, message) for code, message in told]


def _compared(before: Facts, now: Facts, where: str) -> list[str]:
    """What has changed that a person should know. Raises UserError where it is another run."""
    if before.dataset != now.dataset:
        at = f"{where} was trained on {before.dataset} samples, the data now has {now.dataset}"
        raise UserError("run.dir", at, "give another run.dir")
    if before.fingerprint != now.fingerprint:
        at = f"{where} was trained on other data of as many samples (fingerprint {before.fingerprint}, now {now.fingerprint})"
        raise UserError("run.dir", at, "bring the data back, or give another run.dir")
    warned = []
    for c in changes(before.config, now.config):
        if c.kind == "refuse":
            problem, remedy = c.reason.split(": ", 1)
            raise UserError(c.setting, f"is {c.now}, but {where} was begun with {c.before}, and {problem}", remedy)
        if c.kind == "warn":
            warned.append(f"{c.setting}: {c.before} -> {c.now} since the checkpoint" + (f"; {c.reason}" if c.reason else ""))
    return warned


def anew(folder: Path) -> State:
    """Where a run without a checkpoint stands, whether or not it was started before."""
    journal = folder / "events.jsonl"
    return _again(State(began=began(journal)), folder) if starts(journal) else State()


def _again(state: State, folder: Path) -> State:
    """The state that is gone back to, with what the journal tells of the starts until now."""
    journal = folder / "events.jsonl"
    last, restarts = last_window(journal), max(state.restarts + 1, starts(journal))
    nowhere = max(float(last.get("progress/trained_s", 0.0)) - state.trained_s, 0.0)
    return replace(state, restarts=restarts, lost_s=max(state.lost_s, float(last.get("reliability/lost_s", 0.0)) + nowhere))


def aged(state: State) -> tuple[Age, list[Noticed]]:
    """How old the run is that goes on from this state, and what there is to tell of it."""
    if not state.restarts:
        return Age(), []
    age = Age.of(state.began, state.trained_s + state.lost_s)
    if age.before_s is not None or state.began is None:
        return age, []
    text = "the clock is set back: it cannot be known how long ago the run began, nor reliability/goodput_pct"
    return age, [Noticed(state.step, state.samples, "clock", text)]
