"""A batch that follows what the run measures: the noise scale, or a plateau of the validation metric. By accumulation alone."""

import math
from dataclasses import replace

from harness.checkpoint.train_state import State
from harness.config.schema import Config
from harness.plan.optimizers import optimizer_facts
from harness.plan.plan import Plan
from harness.plan.plateau import THRESHOLD
from harness.plan.scaling_rules import Situation, rewrite
from harness.telemetry.events import Metrics, Noticed
from harness.training.alerts import KNOWN


def follow_noise(config: Config, plan: Plan, state: State) -> tuple[State, list[Noticed]]:
    """Double the batch while twice of it is within the noise scale, halve it when it is twice past it; `plan` is the run's own.

    At most batch.most, at least the plan's. The rate follows by the run's rule.
    """
    noise, most = state.noise.samples, config.batch.most
    if config.batch.grow != "noise" or noise is None or most is None or state.noise.weight < KNOWN:
        return state, []
    batch = plan.global_batch * state.growth
    growth = state.growth
    if 2 * batch <= min(noise, most):
        growth *= 2
    elif batch > 2 * noise and growth > 1:
        growth //= 2
    if growth == state.growth:
        return state, []
    factor = _rule_factor(config, plan, growth)
    text = f"global batch {batch} -> {plan.global_batch * growth}, lr x {factor:g}: the noise scale is {noise:.0f} samples"
    return replace(state, growth=growth, growth_lr=factor), [Noticed(state.step, state.samples, "batch", text)]


def _rule_factor(config: Config, plan: Plan, growth: int) -> float:
    """The rate by the run's rule at `growth` times the plan's batch, as a factor of the plan's own rate."""
    family = optimizer_facts(plan.optimizer).family
    now, then = (
        rewrite(plan.rule, family, Situation(plan.global_batch * g, plan.reference_batch, config.scaling.noise_scale))[1].lr
        for g in (growth, 1)
    )
    return now / then


def on_plateau(config: Config, plan: Plan, state: State, metrics: Metrics) -> tuple[State, list[Noticed]]:
    """Shape plateau after an evaluation: without improvement within the patience, lower the rate, or grow the batch."""
    shape, value = plan.schedule, metrics[config.eval.metric]
    if shape.shape != "plateau" or value is None:
        return state, []
    worse = -value if config.eval.better == "higher" else value
    given = config.schedule.threshold
    after = state.plateau.after(
        worse,
        state.samples,
        patience=shape.every,
        gamma=shape.gamma,
        floor=shape.final_fraction,
        threshold=THRESHOLD if given is None else given,
    )
    if after.drops == state.plateau.drops:
        return replace(state, plateau=after), []
    why = f"no better {config.eval.metric} for {shape.every} samples"
    times, most = round(1 / shape.gamma), config.batch.most
    if config.schedule.on_plateau == "grow_batch" and most is not None and plan.global_batch * state.growth * times <= most:
        batch = plan.global_batch * state.growth
        text = f"{why}: global batch {batch} -> {batch * times} from here"
        kept = replace(after, factor=state.plateau.factor)
        return replace(state, plateau=kept, growth=state.growth * times), [Noticed(state.step, state.samples, "batch", text)]
    if after.factor == state.plateau.factor:
        return replace(state, plateau=after), []
    text = f"{why}: lr x {after.factor:g} from here"
    return replace(state, plateau=after), [Noticed(state.step, state.samples, "plateau", text)]


def better(config: Config, state: State, metrics: Metrics) -> bool:
    """Whether an evaluation is the best so far, by eval.metric. A value that is not a number never is."""
    return _gain(config, metrics, state.best.get(config.eval.metric)) > 0


def patience_again(config: Config, state: State, metrics: Metrics) -> bool:
    """Whether the patience counts from this evaluation: it is better by eval.min_delta than the one it counts from now."""
    then = state.best.get(config.eval.metric) if state.best_then is None else state.best_then
    gain = _gain(config, metrics, then)
    return gain > 0 if config.eval.min_delta is None else gain >= config.eval.min_delta


def _gain(config: Config, metrics: Metrics, best: float | None) -> float:
    """By how much eval.metric is better than `best`; infinite if there is none, NaN if the metric is not finite."""
    value = metrics[config.eval.metric]
    if value is None or not math.isfinite(value):
        return math.nan
    return math.inf if best is None else value - best if config.eval.better == "higher" else best - value
