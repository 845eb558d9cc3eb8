"""What the guard does about trouble: lowers the rate, goes back to the last good checkpoint, or stops.

All ranks act alike: they have read the same window, and share the checkpoints.
"""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import msgspec

from harness.checkpoint import reader as checkpoint
from harness.checkpoint.state_check import check_state
from harness.checkpoint.train_state import State
from harness.config.errors import UserError
from harness.config.schema import Config
from harness.engine.interface import Engine, Limit
from harness.plan.guard_policy import Action, GuardState, Trouble, answer, policy
from harness.plan.lr_backoff import LrBackoff
from harness.plan.plan import Plan
from harness.supervision.safe_files import read_own, write_own
from harness.telemetry.events import Noticed
from harness.telemetry.lr_advice import too_high
from harness.telemetry.spikes import LEAST_LOG
from harness.training.saves import Places

REMEMBERED = "guard.json"
CLIP_Z = 6.0
"""Spikes are clipped to this many robust deviations above the median of the logarithm of gradient norms."""


def limit(config: Config, state: State) -> Limit | None:
    """What the guard allows a gradient's norm to be in the next window; None if it leaves spikes alone, or knows too little."""
    given = policy(config.guard)["spike"]
    if given not in ("clip", "skip"):
        return None
    usual = state.norms.limit(CLIP_Z, LEAST_LOG) if given == "clip" else state.norms.beyond(LEAST_LOG)
    return None if usual is None else Limit(math.exp(usual), skip=given == "skip")


def suspicion(before: State, state: State, position: int, wrong: dict[Trouble, str], uniform: float | None) -> GuardState:
    """The guard's state, with the window from `before` to `position` suspected or cleared."""
    well = state.health.well(uniform)
    fell = not well and before.step > 0 and before.health.well(uniform)
    return state.guard.seen(wrong, (before.samples, position), well=well, fell=fell)


class StopError(Exception):
    """The guard ends the run; the text says why."""


def act(
    config: Config, plan: Plan, engine: Engine, places: Places | None, state: State, wrong: dict[Trouble, str]
) -> tuple[State, list[Noticed]]:
    """(the state to continue with, the notices) after a window with troubles. Raises StopError."""
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
        raise StopError(f"{why}; guard.interventions {guard.interventions} are used up")
    if action == "roll_back":
        return _roll_back(config, plan, engine, places, state, why)
    brake = _brake(action, config, plan, state.guard.brake, state.samples)
    moved = replace(state.guard, brake=brake, interventions=state.guard.interventions + 1)
    text = f"lr x {brake.factor:g} from here{_until(brake)}, because of {why}"
    health = state.health.forgiven(ill=trouble in ("divergence", "dead"))
    return replace(state, guard=moved, health=health), [Noticed(state.step, state.samples, action, text)]


def _roll_back(
    config: Config, plan: Plan, engine: Engine, places: Places | None, state: State, why: str
) -> tuple[State, list[Noticed]]:
    """Weights, moments and state of the newest good checkpoint, at a lower rate, without the samples that began the trouble."""
    before = state.guard
    found, again = (None, False) if places is None else _target(places.checkpoints, before.returned)
    if found is None or places is None:
        raise StopError(f"{why}; there is no good checkpoint to roll back to")
    engine.load(found.tensors)
    engine.any_rank(False)  # wait until all ranks have read the checkpoint: then newer ones may be deleted
    then, gap, in_vain = found.state, before.suspect, before.in_vain + 1 if again else 0
    guard = GuardState(
        brake=before.brake.pressed(config.guard.factor ** (in_vain + 1), then.samples, plan.recover_samples),
        interventions=before.interventions + 1,
        rollbacks=before.rollbacks + 1,
        gaps=tuple(sorted({*before.gaps, gap} if gap else before.gaps)),
        returned=then.samples,
        in_vain=in_vain,
    )
    away_s = max(state.trained_s - then.trained_s, 0.0)
    back = replace(
        then,
        skipped_steps=max(state.skipped_steps, then.skipped_steps),
        empty_steps=max(state.empty_steps, then.empty_steps),
        losses=replace(then.losses, count=max(state.losses.count, then.losses.count)),
        norms=replace(then.norms, count=max(state.norms.count, then.norms.count)),
        guard=guard,
        restarts=state.restarts,
        nonfinite_steps=state.nonfinite_steps,
        lost_s=state.lost_s + away_s,
        rolled_back_s=state.rolled_back_s + away_s,
        discarded_samples=state.discarded_samples + max(state.samples - then.samples, 0),
        micro=state.micro,
        bad_samples=state.bad_samples,
        bad_valid=state.bad_valid,
        health=replace(then.health, erratic=False),
    )
    problems = _put_down(places, found.name, guard) if engine.rank == 0 else []
    text = (
        f"back from step {state.step} to {then.step} ({found.name}), lr x {guard.brake.factor:g} from there"
        f"{_until(guard.brake)}{f', samples {gap[0]:,} to {gap[1]:,} left out' if gap else ''}, because of {why}"
    )
    told = [Noticed(back.step, back.samples, "roll_back", text)]
    return back, told + [Noticed(back.step, back.samples, "guard", problem) for problem in problems]


def _target(where: str, returned: int | None) -> tuple[checkpoint.Checkpoint | None, bool]:
    """(checkpoint to go back to, whether the last roll-back did not help: no good one is newer than the one it took).

    If it did not help, go back one checkpoint further, if there is one: the weights may have been bad before the losses showed it.
    """
    good = checkpoint.well(where)
    newest = next(good, None)
    if newest is None or newest.state.samples != returned:
        return newest, False
    return next(good, newest), True


def _put_down(places: Places, returned: str, guard: GuardState) -> list[str]:
    """Delete checkpoints newer than the one returned to, and write what a restart must know. Returns what went wrong."""
    problems, undone = [], "a restart before the next checkpoint would undo the roll-back"
    try:
        checkpoint.drop_newer(places.checkpoints, returned)
    except OSError as e:
        problems.append(f"checkpoints newer than {returned} cannot be removed ({e.strerror}): {undone}")
    try:
        write_own(places.folder / REMEMBERED, json.dumps(asdict(guard)))
    except OSError as e:
        problems.append(f"{REMEMBERED} cannot be written ({e.strerror}): {undone}")
    return problems


def recall(folder: Path, state: State) -> tuple[State, str]:
    """(the state of a checkpoint, with what the guard has done since it was written; what is wrong with the record of that)."""
    try:
        text = read_own(folder / REMEMBERED)
        if text is None:
            return state, ""
        guard = msgspec.json.decode(text, type=GuardState)
        check_state(replace(state, guard=guard))
    except (UserError, OSError, ValueError, RecursionError) as e:
        return state, f"{REMEMBERED} cannot be read ({e}): the guard's actions since the checkpoint are lost"
    return (replace(state, guard=guard) if guard.interventions > state.guard.interventions else state), ""


def _brake(action: Action, config: Config, plan: Plan, before: LrBackoff, samples: int) -> LrBackoff:
    """The back-off after lowering the rate once more."""
    if action == "warm_up":
        return LrBackoff(min(plan.reference_lr / plan.target_lr, config.guard.factor), samples, 2 * plan.warmup_samples)
    return before.pressed(config.guard.factor, samples, plan.recover_samples)


def _until(brake: LrBackoff) -> str:
    return f", back to the schedule's over {brake.over:,} samples" if brake.over else ""
