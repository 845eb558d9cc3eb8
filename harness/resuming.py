"""A run goes on: the newest good checkpoint of its folder is taken over, or it is said why that must not be."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.engine import checkpoint
from harness.engine.engine import Engine
from harness.engine.state import State
from harness.guarding import recall
from harness.plan.config import Config
from harness.plan.errors import UserError
from harness.plan.plan import Plan
from harness.stats.events import Noticed
from harness.stats.past import last_window


def resume(engine: Engine, config: Config, plan: Plan, samples: int, folder: Path) -> tuple[State | None, list[Noticed]]:
    """(where the run stands, None where it has no checkpoint; what there is to tell). `samples`: size of the data now.

    Weights and optimizer state are loaded into the engine; the plan's numbers stay. Raises UserError where the checkpoint is of
    another run.
    """
    found, complaints = checkpoint.newest(folder / "checkpoints")
    notices = [Noticed(0, 0, "damaged_checkpoint", f"not used: {complaint}") for complaint in complaints]
    if found is None:
        if complaints:
            at = f"none of the {len(complaints)} checkpoints in {folder} can be used ({complaints[0]})"
            raise UserError("run.dir", at, "restore one, or give another run.dir to start anew")
        return None, notices
    _check(found.about, config, plan, samples, folder)
    engine.load(found.tensors)
    before = recall(folder, found.state)
    state = replace(before, restarts=before.restarts + 1, lost_s=before.lost_s + _lost(before, folder))
    world = f"{found.about['world_size']} -> {plan.world_size} ranks"
    text = f"going on from {found.path.name} at step {state.step}: {world}, "
    text += f"global batch {found.about['global_batch']} -> {plan.global_batch}"
    return state, [*notices, Noticed(state.step, state.samples, "resumed", text)]


def _check(about: dict[str, Any], config: Config, plan: Plan, samples: int, folder: Path) -> None:
    """Raises UserError where what was saved is not this run's."""
    if about["dataset"] != samples:
        at = f"{folder} was trained on {about['dataset']} samples, the data now has {samples}"
        raise UserError("run.dir", at, "give another run.dir")
    if about["seed"] != config.run.seed:
        at = f"is {config.run.seed}, but {folder} was begun with {about['seed']}"
        raise UserError("run.seed", at, "the sample order hangs on it: keep the seed, or give another run.dir")
    if about["optimizer"] != plan.optimizer:
        at = f"is {plan.optimizer}, but {folder} was begun with {about['optimizer']}"
        raise UserError("optim.name", at, "its state fits no other: keep the optimizer, or give another run.dir")


def _lost(state: State, folder: Path) -> float:
    """Seconds of training that the journal tells of after the checkpoint that is gone back to."""
    last = last_window(folder / "events.jsonl")
    return max(float(last.get("progress/trained_s", state.trained_s)) - state.trained_s, 0.0)
