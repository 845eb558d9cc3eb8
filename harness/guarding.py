"""What the guard does about trouble: lowers the rate, goes back to the last good checkpoint, or stops.

All ranks act alike: they have read the same window, and share the checkpoints.
"""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

from harness.engine import checkpoint
from harness.engine.engine import Engine, Limit
from harness.engine.state import State
from harness.plan.brake import Brake
from harness.plan.config import Config
from harness.plan.guard import Action, Guarded, Trouble, answer, policy
from harness.plan.plan import Plan
from harness.saving import place
from harness.stats.advice import too_high
from harness.stats.events import Noticed

REMEMBERED = "guard.json"
CLIP_Z = 6.0
"""Robust deviations above the median gradient norm (of its logarithm) to which spikes are clipped."""


def limit(config: Config, state: State) -> Limit | None:
    """What the guard allows a gradient's norm to be in the next window; None where it leaves spikes alone, or knows too little."""
    given = policy(config.guard)["spike"]
    usual = {"clip": lambda: state.norms.limit(CLIP_Z), "skip": state.norms.beyond}.get(given, lambda: None)()
    return None if usual is None else Limit(math.exp(usual), skip=given == "skip")


def suspicion(before: State, state: State, position: int, wrong: dict[Trouble, str], uniform: float | None) -> Guarded:
    """What the guard has done, with the window from `before` to `position` suspected or cleared."""
    well = state.health.well(uniform)
    fell = not well and before.step > 0 and before.health.well(uniform)
    return state.guard.seen(wrong, (before.samples, position), well=well, fell=fell)


class StopError(Exception):
    """The guard ends the run; the text says why."""


def act(
    config: Config, plan: Plan, engine: Engine, folder: Path | None, state: State, wrong: dict[Trouble, str]
) -> tuple[State, list[Noticed]]:
    """(the state to go on with, what there is to tell) after a window with troubles. Raises StopError."""
    guard = config.guard
    if state.nonfinite_steps > guard.budget:
        high = too_high(plan, state.noise.samples, state.losses.count)
        raise StopError(f"{state.nonfinite_steps} steps were not finite, more than guard.budget {guard.budget}: {high}")
    found = answer(guard, wrong) if wrong else None
    if found is None or found[0] == "skip":
        return state, []
    action, trouble = found
    why = f"{trouble}: {wrong[trouble]}"
    if action == "stop":
        raise StopError(f"{why}; guard.{trouble} is stop")
    if state.guard.interventions >= guard.interventions:
        raise StopError(f"{why}; guard.interventions {guard.interventions} are spent")
    if action == "roll_back":
        return _roll_back(config, plan, engine, folder, state, why)
    brake = _brake(action, config, plan, state.guard.brake, state.samples)
    moved = replace(state.guard, brake=brake, interventions=state.guard.interventions + 1)
    text = f"lr x {brake.factor:g} from here{_until(brake)}, because of {why}"
    health = state.health.forgiven(ill=trouble in ("divergence", "dead"))
    return replace(state, guard=moved, health=health), [Noticed(state.step, state.samples, action, text)]


def _roll_back(
    config: Config, plan: Plan, engine: Engine, folder: Path | None, state: State, why: str
) -> tuple[State, list[Noticed]]:
    """Weights, moments and state of the newest good checkpoint, at a lower rate, without the samples that began the trouble."""
    before = state.guard
    found, again = (None, False) if folder is None else _target(place(config, folder), before.returned)
    if found is None or folder is None:
        raise StopError(f"{why}; there is no good checkpoint to roll back to")
    engine.load(found.tensors)
    engine.any_rank(False)  # all have read: what is given up may go
    if engine.rank == 0:
        checkpoint.drop_newer(place(config, folder), found.name)
    then, gap, in_vain = found.state, before.suspect, before.in_vain + 1 if again else 0
    guard = Guarded(
        brake=before.brake.pressed(config.guard.factor ** (in_vain + 1), then.samples, plan.recover_samples),
        interventions=before.interventions + 1,
        rollbacks=before.rollbacks + 1,
        gaps=tuple(sorted({*before.gaps, gap} if gap else before.gaps)),
        returned=then.samples,
        in_vain=in_vain,
    )
    back = replace(
        then,
        guard=guard,
        restarts=state.restarts,
        nonfinite_steps=state.nonfinite_steps,
        lost_s=state.lost_s + max(state.trained_s - then.trained_s, 0.0),
        micro=state.micro,
        bad_samples=state.bad_samples,
        bad_valid=state.bad_valid,
        health=replace(then.health, erratic=False),
    )
    remember(folder, guard, engine.rank)
    text = (
        f"back from step {state.step} to {then.step} ({found.name}), lr x {guard.brake.factor:g} from there"
        f"{_until(guard.brake)}{f', samples {gap[0]:,} to {gap[1]:,} left out' if gap else ''}, because of {why}"
    )
    return back, [Noticed(back.step, back.samples, "roll_back", text)]


def _target(where: str, returned: int | None) -> tuple[checkpoint.Checkpoint | None, bool]:
    """(checkpoint to go back to, whether the last roll-back was in vain: no good one is newer than what it took).

    Then it is the one before, where there is one: the weights may have been ill before the losses showed it.
    """
    good = checkpoint.well(where)
    newest = next(good, None)
    if newest is None or newest.state.samples != returned:
        return newest, False
    return next(good, newest), True


def remember(folder: Path, guard: Guarded, rank: int) -> None:
    """Write down what the guard has done, beside the checkpoints: a restart must not undo a roll-back. Raises OSError."""
    if rank == 0:
        draft = folder / f".{REMEMBERED}.tmp"
        draft.write_text(json.dumps(asdict(guard)))
        draft.replace(folder / REMEMBERED)


def recall(folder: Path, state: State) -> State:
    """The state of a checkpoint that a run goes on from, with what the guard has done since it was written."""
    path = folder / REMEMBERED
    if not path.exists():
        return state
    guard = Guarded.from_json(json.loads(path.read_text()))
    return replace(state, guard=guard) if guard.interventions > state.guard.interventions else state


def _brake(action: Action, config: Config, plan: Plan, before: Brake, samples: int) -> Brake:
    """The brake after one more press."""
    if action == "warm_up":
        return Brake(min(plan.reference_lr / plan.target_lr, config.guard.factor), samples, 2 * plan.warmup_samples)
    return before.pressed(config.guard.factor, samples, plan.recover_samples)


def _until(brake: Brake) -> str:
    return f", back to the schedule's over {brake.over:,} samples" if brake.over else ""
