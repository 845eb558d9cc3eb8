"""What a run says of a window: the state moved past its steps, and every metric, from one reading of all ranks."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

import torch

from harness.engine.engine import Engine
from harness.engine.state import State
from harness.noticing import Noticer, troubles
from harness.pace import Taken
from harness.parts.data import Feed
from harness.parts.flops import count_flops
from harness.parts.recipe import Recipe
from harness.plan.config import Config
from harness.plan.guard import Trouble
from harness.plan.hardware import peak_tflops
from harness.plan.plan import Plan
from harness.stats.clock import Age, Clock
from harness.stats.events import Event, Metrics, Noticed, Stepped, Windowed
from harness.stats.noise import NoiseScale
from harness.stats.rows import Reading, StepRow
from harness.stats.spikes import FLAGGED
from harness.stats.window import Window, Work, memory, skew, throughput, training

SPIKE_LEAST = 0.15
"""Of the loss at the start: by how much a spike stands out at least. Below that, a run near its end is only restless."""
_MOMENT_OF_SGD = ("sgd", "nesterov")


@dataclass
class Teller:
    """Tells a run's windows. Holds what is told of but no part of the run's state: clocks and costs."""

    config: Config
    plan: Plan
    recipe: Recipe
    engine: Engine
    feed: Feed
    valid_samples: int
    clock: Clock = field(default_factory=Clock)
    age: Age = field(default_factory=Age)
    saved_s: float | None = None
    saved_bytes: int | None = None
    saved_at_s: float = 0.0
    saved_at_samples: int = 0
    _work: Work | None = None
    _recent: deque[tuple[int, float, float]] = field(default_factory=deque)
    _kept: int = 0
    noticer: Noticer = field(init=False)

    def __post_init__(self) -> None:
        self.noticer = Noticer(self.engine)

    def window(
        self, state: State, reading: Reading, taken: Sequence[Taken], *, first: bool
    ) -> tuple[State, list[Event], dict[Trouble, str]]:
        """(the state after the window's steps, what there is to tell, what is wrong). `first`: its one step warmed all up."""
        if first:
            self.clock.discard("first_step")
        seconds = self.clock.lap()
        events: list[Event] = []
        losses, norms = [r.loss for r in reading.steps], [_log(r.grad_norm) for r in reading.steps]
        least = SPIKE_LEAST * abs(state.health.began or 0.0)
        scores, losses_after = state.losses.judged(losses, least)
        norm_scores, norms_after = state.norms.judged(norms)
        number, position = state.step, state.samples
        for row, loss, score, step in zip(reading.steps, losses, scores, taken, strict=True):
            number, position = number + 1, position + step.samples
            events.append(Stepped(number, position, _step_metrics(row, loss, step)))
            if not row.applied:
                events.append(_skipped(number, position, row))
            if score is not None and score > FLAGGED:
                text = f"loss {loss:.4g} stands out from the {len(state.losses.memory)} before it"
                events.append(Noticed(number, position, "spike", text))
            self._remember(step.samples, row)
        window = Window(reading, sum([t.samples for t in taken]), 0.0 if first else seconds, taken[-1].lr, self.engine.processes)
        trained = training(window)
        moved = [step.advance for row, step in zip(reading.steps, taken, strict=True) if row.applied]
        skipped = state.skipped_steps + len(taken) - len(moved)
        state = replace(
            state,
            step=number,
            samples=position,
            items=sum([row.count for row in reading.steps], state.items),
            scheduled=sum(moved, state.scheduled),
            skipped_steps=skipped,
            nonfinite_steps=state.nonfinite_steps + sum([row.bad for row in reading.steps]),
            losses=losses_after,
            norms=norms_after,
            health=state.health.after(losses, trained["train/update_to_param_ratio"] if taken[-1].lr else None),
            noise=self._noise(state.noise, number - skipped, reading),
            trained_s=state.trained_s + seconds,
            began=self.age.began,
        )
        metrics = self.progress(state) | trained | self._groups(taken[-1].lr)
        metrics |= throughput(window, self._costs()) | memory(reading.ranks) | skew(reading.ranks)
        metrics |= self._stability(state, scores, norm_scores, reading.steps[-1]) | self._reliability(state)
        events.append(Windowed(state.step, state.samples, metrics))
        worst = max((z for z in (*scores, *norm_scores) if z is not None), default=None)
        wrong = troubles(self.recipe, self.plan, state, reading, worst)
        events += self.noticer.notices(self.plan, state, reading, metrics, wrong, self.saved_at_samples)
        return state, events, wrong

    def progress(self, state: State) -> Metrics:
        """The groups progress/, pause/ and batch/: with every window and evaluation."""
        plan, noise = self.plan, state.noise.samples
        out: Metrics = {
            "progress/step": float(state.step),
            "progress/samples": float(state.samples),
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
            "batch/noise_scale_samples": noise,
            "batch/critical_ratio": plan.global_batch / noise if noise else None,
            "batch/scaling_gain": state.noise.gain(plan.reference_batch, plan.ratio),
        }
        return out | ({f"progress/{self.recipe.item}s": state.items} if self.recipe.item != "sample" else {})

    def gap(self, loss: float | None) -> float | None:
        """A validation loss less the training loss over as many samples as were validated; None where there were not so many."""
        seen, total, count = 0, 0.0, 0.0
        for samples, loss_sum, items in reversed(self._recent):
            seen, total, count = seen + samples, total + loss_sum, count + items
            if seen >= self.valid_samples:
                break
        return loss - total / count if loss is not None and seen >= self.valid_samples and count else None

    def _remember(self, samples: int, row: StepRow) -> None:
        """Keep the newest steps that hold as many samples as are validated."""
        self._recent.append((samples, row.loss_sum, row.count))
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
                return scale.after(
                    sums.small_square / sums.steps, small, sums.big_square / sums.steps, plan.global_batch, sums.steps
                )
        good = [r for r in reading.steps if r.applied]
        beta = plan.momentum if plan.optimizer in _MOMENT_OF_SGD else plan.betas[0] if plan.betas else None
        if self.engine.estimator == "moments" and beta and len(good) > 1 and taken > 1 / (1 - beta):
            whole = (1 - beta if plan.optimizer in _MOMENT_OF_SGD else 1) / (1 - beta**taken)
            square = fmean([(r.grad_norm * r.clip_factor) ** 2 for r in good])
            return scale.after_moments(square, sums.moment_square * whole**2, beta, plan.global_batch, len(good))
        return scale

    def _groups(self, lr: float) -> Metrics:
        """The rate of each parameter group."""
        if self.config.watch.layers:
            return {}
        return {f"train/group{n}_lr": lr * scale for n, scale in enumerate(self.engine.lr_scales())}

    def _costs(self) -> Work:
        """What a sample costs; counted once, after the first window."""
        if self._work is None:
            with self.clock.pause("count_flops"):
                own = self.recipe.flops_per_item()
                per_sample = self.recipe.items_per_sample()
                if own is not None and per_sample is not None:
                    flops: float | None = own * per_sample
                else:
                    flops = count_flops(self.recipe, *self.feed.example(self.plan.micro_batch))
                name = torch.cuda.get_device_name(self.engine.device) if self.engine.device.type == "cuda" else "cpu"
                known = peak_tflops(name, self.plan.precision, tf32=self.config.compute.tf32)
                peak = self.config.watch.peak_tflops or (known[0] if known else None)
                self._work = Work(self.recipe.item, per_sample, flops, peak, self.config.watch.baseline)
        return self._work

    def _stability(self, state: State, scores: Sequence[float | None], norms: Sequence[float | None], last: StepRow) -> Metrics:
        uniform = self.recipe.uniform_loss()
        return {
            "stability/nonfinite_steps": float(state.nonfinite_steps),
            "stability/skipped_steps": float(state.skipped_steps),
            "stability/spikes": float(state.losses.count),
            "stability/loss_z": max((z for z in scores if z is not None), default=None),
            "stability/grad_norm_z": max((z for z in norms if z is not None), default=None),
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
            "reliability/goodput_pct": 100 * state.trained_s / age_s if age_s else None,
            "reliability/lost_s": state.lost_s,
            "reliability/checkpoint_block_s": self.saved_s,
            "reliability/checkpoint_age_s": self.clock.train_s - self.saved_at_s,
            "reliability/checkpoint_bytes": self.saved_bytes,
            "reliability/bad_samples": float(len(state.bad_samples) + len(state.bad_valid)),
        }


def _step_metrics(row: StepRow, loss: float, step: Taken) -> dict[str, float]:
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
    """The logarithm, in which gradient norms are spread evenly; NaN where there is none."""
    return math.log(norm) if norm > 0 else math.nan
