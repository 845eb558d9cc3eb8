"""How a run ended, as text, and what is saved."""

from dataclasses import replace

from harness.checkpoint.train_state import State
from harness.config.errors import UserError
from harness.config.schema import Config
from harness.plan.step_triggers import Due
from harness.telemetry.events import Ended, Metrics
from harness.telemetry.measurements import Reading

UNCOUNTED_STEPS = 1000
"""After so many steps without a counted item the cause is not the order of the data."""


def end_reason(up: Due, reading: Reading) -> str:
    """Why a run ends with a window after which `up` is due; empty if it continues."""
    if up.over:
        return "complete"
    if up.limit:
        return "stop_after_steps"
    return "stop_requested" if any(row.stop > 0 for row in reading.steps) else ""


def check_counted(state: State, *, over: bool) -> None:
    """Raise UserError where no step of the run has counted anything: after UNCOUNTED_STEPS, or where the run is `over` sooner."""
    if state.step and state.empty_steps >= state.step and (over or state.step >= UNCOUNTED_STEPS):
        at = f"loss() has counted nothing in any of {state.step:,} steps, so no weight has changed"
        remedy = "give the number of items in the batch as the count, and check that samples have targets"
        raise UserError("recipe.use", at, remedy)


def ended(state: State, reason: str, message: str = "") -> Ended:
    """The end of a run that stands at `state`."""
    guard = state.guard
    if guard.interventions and not message:
        message = f"the guard stepped in {guard.interventions}x and rolled back {guard.rollbacks}x, "
        message += f"lr x {guard.brake.at(state.samples):.3g} at the end"
    metrics = {f"best/{name.partition('/')[2]}": value for name, value in state.best.items()} | state.last
    return Ended(state.step, state.samples, reason, message, metrics)


def unsaved(end: Ended, why: str) -> Ended:
    """The end of a run, changed to say that its last checkpoint could not be written."""
    return replace(end, reason="unsaved", message=f"{end.reason}, but its last checkpoint could not be written: {why}")


def judged(config: Config, state: State, found: Metrics, uniform: float | None) -> Metrics:
    """What is saved with a state: its score, the lower the better, and whether the run is healthy. `found`: its own evaluation."""
    value = found.get(config.eval.metric)
    score = -value if value is not None and config.eval.better == "higher" else value
    return {"score": score, "well": state.health.well(uniform, found.get("eval/loss"))}
