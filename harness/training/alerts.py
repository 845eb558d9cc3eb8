"""Notices about a window, each reported once: trouble, a batch past the noise scale, an overdue checkpoint, a slow window, a rank
that is slower than the others."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median

from harness.checkpoint.train_state import State
from harness.engine.interface import Engine
from harness.plan.guard_policy import Trouble
from harness.plan.plan import Plan
from harness.telemetry.events import Metrics, Noticed
from harness.telemetry.health import MANY_BAD, Health
from harness.telemetry.lr_advice import smaller_batch, too_high
from harness.telemetry.measurements import RanksRow, Reading
from harness.telemetry.spikes import FLAGGED
from harness.telemetry.straggler import Straggler

STALE = 2
"""Cadences without a checkpoint."""
SLOW, SLOW_WINDOWS = 0.8, 20
"""A window is slow below this share of the median rate of so many windows before it."""
SHARED = 0.1
"""Share of a window's time: a CPU rank that waited longer for its CPU shares the machine with other programs, and speeds measured
there mean little."""
KNOWN = 0.5
"""Weight of the noise scale's running means from which on it is used."""


def troubles(uniform: float | None, plan: Plan, state: State, reading: Reading, worst: float | None) -> dict[Trouble, str]:
    """What is wrong with a window, as text, by the guard's names.

    `uniform` is the loss of an untrained model, where the recipe knows it; `worst` the largest score of a loss or gradient norm.
    """
    found: dict[Trouble, str] = {}
    bad, health = sum(r.bad for r in reading.steps), state.health
    if bad:
        found["nonfinite"] = f"{bad} of {len(reading.steps)} steps had a loss or gradient that was not finite"
    if worst is not None and worst > FLAGGED:
        found["spike"] = f"spike: a loss or gradient norm {worst:.0f} sigma above the usual"
    if diverged := _divergence(health, bad, len(reading.steps)):
        found["divergence"] = f"{diverged}: {too_high(plan, state.noise.samples, state.losses.count)}"
    if state.scheduled > plan.warmup_samples and health.dead(uniform):
        how = (
            "the weights do not change"
            if health.still
            else f"the loss stays at {health.recent[-1]:.4g}, that of an untrained model"
        )
        found["dead"] = f"{how}; lr {plan.target_lr:g} may be too high, or the data may contain nothing to learn"
    if health.erratic:
        high = too_high(plan, state.noise.samples, state.losses.count)
        found["erratic"] = f"the update/weight ratio is abnormally high: {high}"
    return found


def _divergence(health: Health, bad: int, steps: int) -> str:
    """How a run diverges, of whose window's steps `bad` were not finite; nothing where it does not."""
    if health.diverging:
        lowest = "" if health.lowest is None else f" and was at {health.lowest:.4g}"
        return f"the loss is at {health.recent[-1]:.4g}, it began at {health.began:.4g}{lowest}"
    return f"{bad} of {steps} steps were not finite" if bad >= MANY_BAD else ""


@dataclass
class AlertTracker:
    """Remembers what was reported already.

    `no_peak`: why the peak rate of the GPU is not known, where it is not; `no_count`: why a step's operations are not.
    """

    engine: Engine
    no_peak: str = ""
    no_count: str = ""
    _said: set[str] = field(default_factory=set)
    _rates: deque[float] = field(default_factory=lambda: deque(maxlen=SLOW_WINDOWS))
    _straggler: Straggler = field(default_factory=Straggler)

    def notices(
        self, plan: Plan, state: State, reading: Reading, metrics: Metrics, wrong: dict[Trouble, str], saved_at: int
    ) -> Iterator[Noticed]:
        """The notices of a window. `saved_at`: samples at the last checkpoint."""
        found: dict[str, str] = {code: text for code, text in wrong.items() if code in ("divergence", "dead", "erratic")}
        ratio = plan.global_batch / state.noise.samples if state.noise.samples else None
        found["past_noise_scale"] = self._past_noise_scale(plan, state, ratio)
        found["flops_unknown"] = _flops_unknown(self.no_count) if self.no_count else ""
        found["mfu_unknown"] = "" if metrics["throughput/tflops_per_device"] is None else self.no_peak
        found["stale_checkpoint"] = _stale(plan.checkpoint_every_samples, state.samples - saved_at)
        seconds = sum(reading.laps_s)
        shared = is_shared(self.engine.device.type, reading.ranks, seconds)
        found["slow"] = "" if shared else self._slow(metrics["throughput/samples_per_s"])
        after = self._straggler.after(reading.ranks, len(reading.steps), seconds)
        self._straggler, slow = (Straggler(), "") if shared or plan.share is None else after
        if slow and (code := f"straggler {self._straggler.rank}") not in self._said:
            self._said.add(code)
            yield Noticed(state.step, state.samples, "straggler", slow + _where(plan, self._straggler.rank))
        for code, text in found.items():
            if text and code not in self._said:
                self._said.add(code)
                yield Noticed(state.step, state.samples, code, text)

    def _past_noise_scale(self, plan: Plan, state: State, ratio: float | None) -> str:
        """The notice about a global batch of `ratio` times the measured noise scale; nothing while that is not known well."""
        noise = state.noise
        if ratio is None or ratio <= 1 or noise.weight <= KNOWN:
            return ""
        smaller = smaller_batch(plan, noise.samples or 0.0)
        text = f"the global batch of {plan.global_batch} is {ratio:.1f} times the measured noise scale of "
        text += f"{noise.samples:.0f} samples ({self.engine.estimator}): a larger batch gains little"
        return f"{text}; set batch.total: {smaller}" if smaller else text

    def _slow(self, rate: float | None) -> str:
        """The notice about a slow window at `rate` samples/s; later windows are compared with it, too."""
        if rate is None:
            return ""
        usual = median(self._rates) if len(self._rates) == SLOW_WINDOWS else 0.0
        self._rates.append(rate)
        if rate >= SLOW * usual:
            return ""
        return f"throughput dropped by {100 * (1 - rate / usual):.0f} %: {rate:,.0f} samples/s, and {usual:,.0f} before"

    def regroup(self) -> None:
        """The ranks are others: what is usual has to be learnt again."""
        self._rates.clear()
        self._straggler = Straggler()

    def forget(self) -> None:
        """Call after the guard has acted: trouble that comes back is reported again."""
        self._said -= {"divergence", "dead", "erratic"}


def _flops_unknown(why: str) -> str:
    text = f"a step's operations could not be counted, so tflops_per_device and mfu_pct are null ({why})"
    return f"{text}: give the recipe flops_per_item()"


def _stale(every: int | None, since: int) -> str:
    """The notice about an overdue checkpoint: `since` samples after the last, where one is due every `every`."""
    if every is None or since <= STALE * every:
        return ""
    return f"no checkpoint for {since:,} samples, though one is due every {every:,}"


def is_shared(device: str, ranks: RanksRow, seconds: float) -> bool:
    """Whether ranks that compute on a CPU had to leave it to other processes for much of a window of so many seconds."""
    return device == "cpu" and ranks.cpu_wait_s > SHARED * seconds


def _where(plan: Plan, rank: int) -> str:
    """The node of a rank, where there are several."""
    return f" (node {rank * plan.nodes // plan.processes})" if plan.nodes > 1 else ""
