"""What a person should hear of a window, once each: trouble, a batch past the noise scale, a stale checkpoint, a slow
window, a rank that is slower than the others."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median

from harness.engine.engine import Engine
from harness.engine.state import State
from harness.parts.recipe import Recipe
from harness.plan.guard import Trouble
from harness.plan.plan import Plan
from harness.stats.advice import too_high
from harness.stats.events import Metrics, Noticed
from harness.stats.health import MANY_BAD
from harness.stats.rows import Reading
from harness.stats.spikes import FLAGGED
from harness.stats.straggler import Straggler

STALE = 2
"""Cadences without a checkpoint."""
SLOW, SLOW_WINDOWS = 0.8, 20
"""A window at less than this share of the median rate of so many before it is slow."""
KNOWN = 0.5
"""Weight of the noise scale's running means from which it is believed."""


def troubles(recipe: Recipe, plan: Plan, state: State, reading: Reading, worst: float | None) -> dict[Trouble, str]:
    """What is wrong with a window, in words, by the guard's names. `worst`: the largest score of a loss or gradient norm in it."""
    found: dict[Trouble, str] = {}
    bad, health = sum(r.bad for r in reading.steps), state.health
    if bad:
        found["nonfinite"] = f"{bad} of {len(reading.steps)} steps had a loss or gradient that was not finite"
    if worst is not None and worst > FLAGGED:
        found["spike"] = f"a loss or gradient norm stood {worst:.0f} deviations above the usual"
    if health.diverging:
        found["divergence"] = f"the loss is at {health.recent[-1]:.4g}, it began at {health.began:.4g}"
        found["divergence"] += f" and was at {health.lowest:.4g}" if health.lowest is not None else ""
    elif bad >= MANY_BAD:
        found["divergence"] = f"{bad} of {len(reading.steps)} steps were not finite"
    if "divergence" in found:
        found["divergence"] += f": {too_high(plan, state.noise.samples, state.losses.count)}"
    if state.scheduled > plan.warmup_samples and health.dead(recipe.uniform_loss()):
        how = "the weights stand still" if health.still else f"the loss stands at {health.recent[-1]:.4g}, as if untrained"
        found["dead"] = f"{how}; lr {plan.target_lr:g} may be too high, or the data hold nothing to learn"
    if health.erratic:
        high = too_high(plan, state.noise.samples, state.losses.count)
        found["erratic"] = f"a step moves the weights by much of themselves: {high}"
    return found


@dataclass
class Noticer:
    """Remembers what was said already."""

    engine: Engine
    _said: set[str] = field(default_factory=set)
    _rates: deque[float] = field(default_factory=lambda: deque(maxlen=SLOW_WINDOWS))
    _straggler: Straggler = field(default_factory=Straggler)

    def notices(
        self, plan: Plan, state: State, reading: Reading, metrics: Metrics, wrong: dict[Trouble, str], saved_at: int
    ) -> Iterator[Noticed]:
        """The notices of a window. `saved_at`: samples at the last checkpoint."""
        found: dict[str, str] = {code: text for code, text in wrong.items() if code in ("divergence", "dead", "erratic")}
        ratio, noise = metrics["batch/critical_ratio"], state.noise
        if ratio is not None and ratio > 1 and noise.weight > KNOWN:
            found["past_noise_scale"] = (
                f"the global batch of {plan.global_batch} is {ratio:.1f} times the measured noise scale of "
                f"{noise.samples:.0f} samples ({self.engine.estimator}): more buys little; try a smaller batch, or rule noise"
            )
        if metrics["throughput/mfu_pct"] is None and self.engine.device.type == "cuda":
            found["mfu_unknown"] = "no peak rate is known for this device, so mfu_pct is null: give watch.peak_tflops"
        every = plan.checkpoint_every_samples
        if every is not None and state.samples - saved_at > STALE * every:
            found["stale_checkpoint"] = f"no checkpoint for {state.samples - saved_at:,} samples; they were due every {every:,}"
        rate = metrics["throughput/samples_per_s"]
        if rate is not None:
            if len(self._rates) == SLOW_WINDOWS and rate < SLOW * median(self._rates):
                found["slow"] = f"{rate:,.0f} samples/s, and {median(self._rates):,.0f} before: something holds the run up"
            self._rates.append(rate)
        self._straggler, slow = self._straggler.after(reading.ranks, len(reading.steps), sum(reading.laps_s))
        if slow and (code := f"straggler {self._straggler.rank}") not in self._said:
            self._said.add(code)
            yield Noticed(state.step, state.samples, "straggler", slow + _where(plan, self._straggler.rank))
        for code, text in found.items():
            if code not in self._said:
                self._said.add(code)
                yield Noticed(state.step, state.samples, code, text)

    def forget(self) -> None:
        """After the guard has acted: trouble that comes back is said again."""
        self._said -= {"divergence", "dead", "erratic"}


def _where(plan: Plan, rank: int) -> str:
    """The node of a rank, where there are several."""
    return f" (node {rank * plan.nodes // plan.processes})" if plan.nodes > 1 else ""
