"""The report of a window: the state after its steps, and every metric, from one reading of all ranks."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

import torch

from harness.checkpoint.train_state import State
from harness.config.schema import Config
from harness.data.feed import Feed
from harness.data.training_order import source_metrics
from harness.engine.interface import Engine
from harness.modeling.flops import CountError, count_flops
from harness.plan.device_peaks import peak_tflops, unknown_peak
from harness.plan.guard_policy import Trouble
from harness.plan.plan import Plan
from harness.recipes.base import Recipe
from harness.telemetry.clock import Age, Clock
from harness.telemetry.events import Event, Histograms, Metrics, Noticed, Stepped, Windowed
from harness.telemetry.measurements import Reading, StepRow
from harness.telemetry.node_metrics import system
from harness.telemetry.noise_scale import NoiseScale
from harness.telemetry.spikes import FLAGGED, LEAST_LOG, Spikes
from harness.telemetry.window_metrics import Window, Work, memory, skew, throughput, training
from harness.training.alerts import AlertTracker, troubles
from harness.training.source_losses import SourceLosses
from harness.training.step_rate import StepRecord

SPIKE_LEAST = 0.15
"""The smallest spike, as a share of the loss at the start: smaller ones are noise near the end of a run."""
EMPTY = "loss() counted nothing on any rank: such a step moves nothing, and is not a fault; stability/empty_steps counts them"
_MOMENT_OF_SGD = ("sgd", "nesterov")


@dataclass
class WindowReporter:
    """Reports a run's windows. Holds what it reports but is no part of the run's state: clocks and costs."""

    config: Config
    plan: Plan
    recipe: Recipe
    engine: Engine
    feed: Feed
    valid_samples: int
    counts_flops: bool = True
    clock: Clock = field(default_factory=Clock)
    age: Age = field(default_factory=Age)
    saved_s: float | None = None
    saved_bytes: int | None = None
    saved_at_s: float = 0.0
    saved_at_samples: int = 0
    _work: Work | None = None
    _recent: deque[tuple[int, float, float]] = field(default_factory=deque)
    _kept: int = 0
    alerts: AlertTracker = field(init=False)
    uniform_loss: float | None = field(init=False)
    sources: SourceLosses | None = None

    def __post_init__(self) -> None:
        """Raises UserError for what the run file asks for and the data does not have."""
        self.alerts = AlertTracker(self.engine)
        self.uniform_loss = self.recipe.uniform_loss()  # called once: it may read the model's configuration
        if self.config.watch.loss_by_source:
            self.sources = SourceLosses(self.engine, self.recipe, self.config, self.feed)

    def window(
        self, state: State, reading: Reading, taken: Sequence[StepRecord], *, first: bool
    ) -> tuple[State, list[Event], dict[Trouble, str]]:
        """(the state after the window's steps, the events, what is wrong). `first`: its one step was the warm-up of everything."""
        if first:
            self.clock.discard("first_step")
        seconds = self.clock.lap()
        scored = _scored(state, reading.steps)
        events = self._steps(state, reading.steps, taken, scored)
        samples = sum([step.samples for step in taken])
        window = Window(reading, samples, 0.0 if first else seconds, taken[-1].lr, self.engine.processes)
        trained = training(window)
        state = self._after(state, window, taken, scored, moved=trained["train/update_to_param_ratio"], seconds=seconds)
        metrics = self.progress(state) | trained | self._groups(taken[-1].lr)
        metrics |= throughput(window, self._costs()) | memory(reading.ranks) | skew(reading.ranks)
        metrics |= system(reading.ranks.nodes, window.ranks, metrics["throughput/samples_per_s"])
        metrics |= self._stability(state, scored, reading.steps[-1]) | self._reliability(state) | self._by_source(state)
        if reading.histograms:
            events.append(Histograms(state.step, state.samples, reading.histograms))
        events.append(Windowed(state.step, state.samples, metrics))
        wrong = troubles(self.uniform_loss, self.plan, state, reading, scored.worst)
        events += self.alerts.notices(self.plan, state, reading, metrics, wrong, self.saved_at_samples)
        return state, events, wrong

    def _steps(self, state: State, rows: Sequence[StepRow], taken: Sequence[StepRecord], scored: "_Scored") -> list[Event]:
        """The events of a window's steps; `state` is that before them."""
        events: list[Event] = []
        number, position = state.step, state.samples
        empty_known = state.empty_steps > 0
        for row, loss, score, step in zip(rows, scored.losses, scored.loss_z, taken, strict=True):
            number, position = number + 1, step.start + step.samples
            events.append(Stepped(number, position, _step_metrics(row, loss, step)))
            if row.empty:
                if not empty_known:
                    events.append(Noticed(number, position, "empty_step", EMPTY))
                empty_known = True
            elif not row.applied:
                events.append(_skipped(number, position, row))
            if score is not None and score > FLAGGED:
                text = f"loss spike: {loss:.4g}, {score:.0f} sigma above the last {len(state.losses.memory)}"
                events.append(Noticed(number, position, "spike", text))
            self._remember(step.samples, row)
        return events

    def _after(
        self, state: State, window: Window, taken: Sequence[StepRecord], scored: "_Scored", *, moved: float | None, seconds: float
    ) -> State:
        """The state after a window of `seconds`, the last step of which moved the weights by `moved` of themselves."""
        rows = window.reading.steps
        passed = [step.advance for row, step in zip(rows, taken, strict=True) if row.applied or row.empty]
        number, skipped = state.step + len(rows), state.skipped_steps + sum([not row.applied for row in rows])
        return replace(
            state,
            step=number,
            samples=taken[-1].start + taken[-1].samples,
            items=sum([row.count for row in rows], state.items),
            scheduled=sum(passed, state.scheduled),
            skipped_steps=skipped,
            empty_steps=state.empty_steps + sum([row.empty for row in rows]),
            nonfinite_steps=state.nonfinite_steps + sum([row.bad for row in rows]),
            losses=scored.losses_after,
            norms=scored.norms_after,
            health=state.health.after(scored.losses, moved if taken[-1].lr and rows[-1].applied else None),
            noise=self._noise(state.noise, number - skipped, window.reading),
            trained_s=state.trained_s + seconds,
            began=self.age.began,
        )

    def progress(self, state: State) -> Metrics:
        """The groups progress/, pause/ and batch/: with every window and evaluation."""
        plan, noise = self.plan, state.noise.samples
        # estimates by moments may be many times too high: kept in a curve of their own
        moments = self.engine.estimator == "moments"
        out: Metrics = {
            "progress/step": float(state.step),
            "progress/samples": float(state.samples),
            "progress/samples_trained": float(state.samples + state.discarded_samples),
            "progress/scheduled_samples": state.scheduled,
            "progress/epoch": state.samples / len(self.feed.data),
            "progress/train_s": self.clock.train_s,
            "progress/trained_s": state.trained_s,
            "progress/wall_s": self.clock.wall_s,
            **{f"pause/{name}_s": seconds for name, seconds in self.clock.pauses.items()},
            "batch/global_samples": float(plan.global_batch),
            "batch/micro_samples": float(plan.micro_batch),
            "batch/accumulate": float(plan.accumulate),
            "batch/world_size": float(plan.world_size),
            "batch/ratio": plan.ratio,
            "batch/noise_scale_samples": None if moments else noise,
            "batch/noise_scale_moments_samples": noise if moments else None,
            "batch/critical_ratio": plan.global_batch / noise if noise and not moments else None,
            "batch/scaling_gain": state.noise.gain(plan.reference_batch, plan.ratio),
        }
        out |= source_metrics(self.feed.data, self.feed.order, state.samples)
        return out | ({f"progress/{self.recipe.item}s": state.items} if self.recipe.item != "sample" else {})

    def gap(self, loss: float | None) -> float | None:
        """A validation loss less the training loss over as many samples as were validated; None if there were not so many."""
        seen, total, count = 0, 0.0, 0.0
        for samples, loss_sum, items in reversed(self._recent):
            seen, total, count = seen + samples, total + loss_sum, count + items
            if seen >= self.valid_samples:
                break
        return loss - total / count if loss is not None and seen >= self.valid_samples and count else None

    def _remember(self, samples: int, row: StepRow) -> None:
        """Keep the newest steps that hold as many samples as are validated."""
        if not self.valid_samples:
            return
        self._recent.append((samples, row.loss_sum, row.count) if math.isfinite(row.loss_sum) else (samples, 0.0, 0.0))
        self._kept += samples
        while self._kept - self._recent[0][0] >= self.valid_samples:
            self._kept -= self._recent.popleft()[0]

    def saved(self, samples: int, seconds: float, size: int) -> None:
        """A checkpoint was written."""
        self.saved_s, self.saved_bytes, self.saved_at_s, self.saved_at_samples = seconds, size, self.clock.train_s, samples

    def _noise(self, scale: NoiseScale, taken: int, reading: Reading) -> NoiseScale:
        """The noise scale after the window, by the engine's estimator; `taken` steps have moved the weights so far."""
        plan, sums = self.plan, reading.noise
        if self.engine.estimator in ("passes", "ranks") and sums.steps:
            ranks = self.engine.processes
            small = plan.micro_batch if self.engine.estimator == "passes" else plan.global_batch / ranks
            if small < plan.global_batch:
                big, scaled = plan.global_batch, (plan.global_batch / small) ** 2 / sums.steps
                squares = scaled * sums.small_square, small, sums.big_square / sums.steps, big
                return scale.after(*squares, sums.steps, share_square=scaled * sums.share_square)
        good = [r for r in reading.steps if r.applied]
        beta = plan.momentum if plan.optimizer in _MOMENT_OF_SGD else plan.betas[0] if plan.betas else None
        if self.engine.estimator == "moments" and beta and len(good) > 1 and taken > 1 / (1 - beta):
            whole = (1 - beta if plan.optimizer in _MOMENT_OF_SGD else 1) / (1 - beta**taken)
            square = fmean([(r.grad_norm * r.clip_factor) ** 2 for r in good])
            moment = sums.moment_square * whole**2 - 2 * whole * sums.moment_decay + sums.decay_square
            return scale.after_moments(square, moment, beta, plan.global_batch, len(good))
        return scale

    def _by_source(self, state: State) -> Metrics:
        """The loss of each source in the step that follows, where the run file asks for it. All ranks call it."""
        if self.sources is None:
            return {}
        with self.clock.pause("source_losses"):
            start = state.guard.past(state.samples)
            return dict(self.sources.of(start, start + self.plan.global_batch))

    def _groups(self, lr: float) -> Metrics:
        """The rate of each parameter group."""
        if self.config.watch.layers:
            return {}
        return {f"train/group{n}_lr": lr * scale for n, scale in enumerate(self.engine.lr_scales())}

    def _costs(self) -> Work:
        """What a sample costs; counted once, after the first window."""
        if self._work is None:
            with self.clock.pause("count_flops"):
                per_sample = self.recipe.items_per_sample()
                self._work = Work(self.recipe.item, per_sample, self._flops(per_sample), self._peak(), self.config.watch.baseline)
        return self._work

    def _flops(self, per_sample: float | None) -> float | None:
        """Operations of a sample's training; None, with a notice, if they cannot be counted. Rank 0 counts."""
        own = self.recipe.flops_per_item()
        if own is not None and per_sample is not None:
            return own * per_sample
        if not self.counts_flops:
            return None
        if self.recipe.gathers:
            self.alerts.no_count = "the loss gathers over ranks"
        if self.engine.rank or self.recipe.gathers:
            return None
        try:
            return count_flops(self.recipe, self.feed.example, self.plan.micro_batch, self.engine.parameters())
        except CountError as e:
            self.alerts.no_count = str(e)
            return None

    def _peak(self) -> float | None:
        """What one device can do at most, in TFLOP/s: as given, or by the table of GPUs. None, with a notice, for one not in it."""
        if self.config.watch.peak_tflops is not None or self.engine.device.type != "cuda":
            return self.config.watch.peak_tflops
        name, precision = torch.cuda.get_device_name(self.engine.device), self.plan.precision
        known = peak_tflops(name, precision, tf32=self.config.compute.tf32)
        if known is None:
            self.alerts.no_peak = unknown_peak(name, precision)
            return None
        return known[0]

    def _stability(self, state: State, scored: "_Scored", last: StepRow) -> Metrics:
        uniform = self.uniform_loss
        return {
            "stability/nonfinite_steps": float(state.nonfinite_steps),
            "stability/skipped_steps": float(state.skipped_steps),
            "stability/empty_steps": float(state.empty_steps),
            "stability/spikes": float(state.losses.count),
            "stability/loss_z": _largest(scored.loss_z),
            "stability/grad_norm_z": _largest(scored.norm_z),
            "stability/dead": None if uniform is None else float(state.health.dead(uniform)),
            "stability/rollbacks": float(state.guard.rollbacks),
            "stability/interventions": float(state.guard.interventions),
            "stability/lr_factor": state.guard.brake.at(state.samples) * state.plateau.factor,
            "stability/loss_scale": last.loss_scale,
        }

    def _reliability(self, state: State) -> Metrics:
        age_s = self.age.seconds
        return {
            "reliability/restarts": float(state.restarts),
            "reliability/recoveries": float(state.recoveries),
            "reliability/goodput_pct": 100 * state.trained_s / age_s if age_s else None,
            "reliability/lost_s": state.lost_s,
            "reliability/rolled_back_s": state.rolled_back_s,
            "reliability/checkpoint_block_s": self.saved_s,
            "reliability/checkpoint_age_s": self.clock.train_s - self.saved_at_s,
            "reliability/checkpoint_bytes": self.saved_bytes,
            "reliability/bad_samples": float(len(state.bad_samples) + len(state.bad_valid)),
        }


@dataclass(frozen=True)
class _Scored:
    """A window's losses, how unusual they and the gradients' norms are, and what is usual from then on."""

    losses: list[float]
    loss_z: list[float | None]
    norm_z: list[float | None]
    losses_after: Spikes
    norms_after: Spikes

    @property
    def worst(self) -> float | None:
        """The largest score."""
        return _largest([*self.loss_z, *self.norm_z])


def _scored(state: State, rows: Sequence[StepRow]) -> _Scored:
    """The scores of a window's steps; `state` is that before them."""
    losses = [row.loss for row in rows]
    loss_z, losses_after = state.losses.judged(losses, SPIKE_LEAST * abs(state.health.began or 0.0))
    norm_z, norms_after = state.norms.judged([_log(row.grad_norm) for row in rows], LEAST_LOG)
    return _Scored(losses, loss_z, norm_z, losses_after, norms_after)


def _largest(scores: Sequence[float | None]) -> float | None:
    """The largest score; None if nothing could be scored."""
    return max([z for z in scores if z is not None], default=None)


def _step_metrics(row: StepRow, loss: float, step: StepRecord) -> dict[str, float]:
    return {
        "train/loss": loss,
        "train/lr": step.lr,
        "train/grad_norm": row.grad_norm,
        "train/clip_factor": row.clip_factor,
        "batch/samples": step.samples,
        "batch/items": row.count,
    }


def _skipped(step: int, samples: int, row: StepRow) -> Noticed:
    if not row.bad and not row.spared:
        text = f"fp16's loss scale {row.loss_scale:g} was too high: the step was skipped on all ranks, and the scale halved"
        return Noticed(step, samples, "loss_scale", text)
    if row.spared:
        text = f"gradient norm {row.grad_norm:.4g} is far above the usual: the step was left out on all ranks"
        return Noticed(step, samples, "spared", text)
    text = f"loss {row.loss:g}, gradient norm {row.grad_norm:g}: the step was skipped on all ranks"
    return Noticed(step, samples, "nonfinite", text)


def _log(norm: float) -> float:
    """The logarithm, in which gradient norms are spread evenly; NaN if there is none."""
    return math.log(norm) if norm > 0 else math.nan
