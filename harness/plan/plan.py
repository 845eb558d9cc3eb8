"""plan(config, world) -> Plan: the only place where a number of a run is derived. Pure, frozen, no torch."""

import json
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from harness.config.errors import UserError
from harness.config.schema import Config
from harness.plan.backend_checks import check_backend, check_chunk_size
from harness.plan.batch import resplit, split_batch
from harness.plan.batch_schedule import Sizes, Stage, stage_at, stage_reason, stages, walk
from harness.plan.checkpoint_interval import cadence
from harness.plan.durations import Lengths
from harness.plan.guard_policy import check_guard
from harness.plan.horizon_rules import at_horizon, stretch
from harness.plan.lr_schedule import Schedule
from harness.plan.optimizers import Family, OptimizerFacts, optimizer_facts
from harness.plan.plan_warnings import Caution, Facts, cautions
from harness.plan.reasons import decay_mode, reasons
from harness.plan.scaling_rules import (
    Rewrite,
    Situation,
    adascale_samples,
    rewrite,
    scale_alpha,
    scale_beta,
    scale_betas,
    scale_decay,
)
from harness.plan.schedule_checks import check_lengths, check_settings, longest_warmup, never_reached
from harness.plan.token_units import sample_tokens
from harness.plan.world import World


@dataclass(frozen=True)
class Plan:
    """Every number of a run. Batches and lengths in samples, `*_steps` in optimizer steps, rates absolute.

    `target_lr` (JSON key `lr`) is the rate after the warm-up; `lr(step)` the rate of a step. `adamw_lr` is the rate after the
    warm-up of what Muon leaves to AdamW, None for other optimizers. `sources` gives each number's reason.
    A run that changes its batch on purpose has several `stages`; `global_batch` and what follows from it are then of one of them.
    """

    world_size: int
    nodes: int
    processes: int
    micro_batch: int
    accumulate: int
    global_batch: int
    reference_batch: int
    ratio: float
    rule: str
    target_lr: float
    reference_lr: float
    adamw_lr: float | None
    optimizer: str
    weight_decay: float
    momentum: float | None
    betas: tuple[float, float] | None
    alpha: float | None
    eps: float | None
    ema: float | None
    clip: float | None
    warmup_samples: int
    warmup_steps: int
    total_samples: int
    total_steps: int
    dataset_samples: int | None
    sample_tokens: int | None
    eval_every_samples: int | None
    checkpoint_every_samples: int | None
    patience_samples: int | None
    recover_samples: int
    noise_scale: float | None
    largest_stable_lr: float | None
    schedule: Schedule
    stages: tuple[Stage, ...]
    backend: str
    precision: str
    warnings: tuple[Caution, ...]
    sources: dict[str, str] = field(compare=False)
    lost: int = 0
    """Ranks of the planned world that were lost since. The others take the same passes between them, not all equally many."""

    def lr(self, step: int) -> float:
        """The learning rate of optimizer step `step` (the first is 0), if all steps before it were of this plan's batch."""
        return self.lr_at(self.samples_at(step))

    def lr_at(self, samples: float) -> float:
        """The learning rate of the step that begins at `samples` of the schedule; rule adascale multiplies it by its gain."""
        stage = stage_at(self.stages, samples)
        return self.schedule.lr(samples, stage.batch) * stage.lr

    def batch_at(self, samples: float) -> int:
        """The planned global batch of the step that begins at `samples` of the schedule."""
        return stage_at(self.stages, samples).batch

    def samples_at(self, step: int) -> int:
        """Samples of the schedule seen before optimizer step `step`."""
        for stage, start, count in walk(self.stages, self.schedule.horizon):
            if step < count or stage is self.stages[-1]:
                return start + step * stage.batch
            step -= count
        raise AssertionError("a plan has a stage")

    def at_batch(self, batch: int, micro: int | None = None) -> "Plan":
        """The plan of a stretch of the run with another global batch, by accumulation, in passes of at most `micro` samples."""
        size, accumulate = resplit(batch // (self.world_size + self.lost), micro or self.micro_batch)
        if self.lost:
            accumulate = -(-batch // (size * self.world_size))
        ema = self.ema and scale_beta(self.ema, batch / self.global_batch, "half_life")
        ratio = batch / self.reference_batch
        return replace(self, global_batch=batch, micro_batch=size, accumulate=accumulate, ratio=ratio, ema=ema)

    def on_ranks(self, ranks: int) -> "Plan":
        """The plan of a segment of the run on other ranks: the same global batches, in the same passes, divided over these."""
        lost, accumulate = self.world_size + self.lost - ranks, -(-self.global_batch // (self.micro_batch * ranks))
        return replace(self, world_size=ranks, processes=ranks, accumulate=accumulate, lost=lost)

    @property
    def share(self) -> int | None:
        """Samples of one process in a full optimizer step; None where processes have different many."""
        even = not self.lost or self.global_batch == self.micro_batch * self.accumulate * self.world_size
        return self.global_batch // self.processes if even else None

    @property
    def passes(self) -> int:
        """Forward passes of one process in a full optimizer step: accumulation, times the ranks it simulates."""
        return self.accumulate * (self.world_size // self.processes)

    def to_json(self) -> dict[str, Any]:
        """Plain data with the outside names; `lr` is the rate after the warm-up, `*_tokens` what the samples are in tokens."""
        tree: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        tree["lr"] = tree.pop("target_lr")
        for name, samples in (("global_batch_tokens", self.global_batch), ("total_tokens", self.total_samples)):
            tree[name] = None if self.sample_tokens is None else samples * self.sample_tokens
        return tree


def plan(config: Config, world: World, dataset: int | None = None) -> Plan:
    """Derive every number of the run `config` on `world`. Pure: it reads no file and imports no torch.

    `dataset`: the number of training samples, where the run file does not say. Raises UserError, naming setting, value and remedy,
    for a plan that cannot be. Source: the paper of each number is in `Plan.sources`.
    """
    dataset = config.recipe.samples or dataset
    tokens = sample_tokens(config.recipe)
    lengths = Lengths(dataset, tokens)
    facts = _optimizer(config, world)
    check_backend(config, facts, world)
    cadence(config.checkpoint)
    split = split_batch(config.batch, world, tokens)
    situation = Situation(split.global_batch, config.batch.reference, config.scaling.noise_scale)
    rule, done = rewrite(config.scaling.rule, facts.family, situation)
    ratio = stretch(config, lengths.horizon(config)[0], tokens)
    done = at_horizon(done, config, ratio, facts.family, rule)
    schedule, why = _schedule(config, lengths, done)
    check_guard(config.guard, schedule, config.backend.name)
    grows = config.schedule.on_plateau == "grow_batch"
    sizes = Sizes(split.global_batch, world.size, tokens, partial(_rule_lr, config, facts.family))
    found = stages(config.batch, schedule, sizes, on_plateau=grows)
    check_chunk_size(config, found, world)
    k = situation.k
    total, steps, steps_reason = _adascale(config, schedule, situation) if rule == "adascale" else _steps(config, schedule, found)
    betas, beta_mode = config.optim.betas or facts.betas, config.scaling.betas or done.betas
    alpha = facts.alpha if config.optim.alpha is None else config.optim.alpha
    eps = config.optim.eps or facts.eps
    warmup_steps = -(-schedule.warmup // split.global_batch)
    planned = Plan(
        world_size=world.size,
        nodes=world.nodes,
        processes=world.run_by,
        micro_batch=split.micro_batch,
        accumulate=split.accumulate,
        global_batch=split.global_batch,
        reference_batch=config.batch.reference,
        ratio=k,
        rule=rule,
        target_lr=schedule.peak,
        reference_lr=config.optim.lr,
        adamw_lr=(config.optim.adamw_lr or config.optim.lr) * done.lr if config.optim.name == "muon" else None,
        optimizer=config.optim.name,
        weight_decay=scale_decay(config.optim.weight_decay, k / ratio, done.lr, decay_mode(config, done, facts)),
        momentum=config.optim.momentum if config.optim.momentum is not None else facts.momentum,
        betas=betas and scale_betas(betas, k, beta_mode, rule),
        alpha=None if alpha is None else scale_alpha(alpha, k, beta_mode, rule),
        eps=eps and eps * done.eps,
        ema=config.optim.ema and scale_beta(config.optim.ema, k, "half_life"),
        clip=config.optim.clip,
        warmup_samples=schedule.warmup,
        warmup_steps=warmup_steps,
        total_samples=total,
        total_steps=steps,
        dataset_samples=dataset,
        sample_tokens=tokens,
        eval_every_samples=lengths.cadence("eval", config.eval.every_epochs, config.eval.every_samples),
        checkpoint_every_samples=lengths.cadence("checkpoint", config.checkpoint.every_epochs, config.checkpoint.every_samples),
        patience_samples=lengths.patience(config),
        recover_samples=lengths.optional("guard.recover_epochs", config.guard.recover_epochs, config.guard.recover_samples) or 0,
        noise_scale=config.scaling.noise_scale,
        largest_stable_lr=config.scaling.largest_stable_lr,
        schedule=schedule,
        stages=found,
        backend=config.backend.name,
        precision=config.precision,
        warnings=(),
        sources={
            **reasons(config, world, split, done, facts),
            **why,
            "total_steps": steps_reason,
            "stages": stage_reason(config.batch),
        },
    )
    return replace(planned, warnings=_warnings(config, planned, facts, done))


def _rule_lr(config: Config, family: Family, batch: int) -> float:
    """The factor of the run's rule on lr at a global batch."""
    return rewrite(config.scaling.rule, family, Situation(batch, config.batch.reference, config.scaling.noise_scale))[1].lr


def _steps(config: Config, schedule: Schedule, found: tuple[Stage, ...]) -> tuple[int, int, str]:
    """(samples, optimizer steps, the reason)."""
    horizon = schedule.horizon
    *_, (last, start, _) = walk(found, horizon)
    steps, short = sum(n for _, _, n in walk(found, horizon)), (horizon - start) % last.batch
    reason = f"{horizon} / {last.batch} per step" if len(found) == 1 else f"{horizon} samples in {len(found)} stages"
    if not short:
        return horizon, steps, reason
    if config.batch.last == "keep":
        return horizon, steps, f"{reason}, the last with {short}"
    if steps == 1:
        at = f"drop leaves no step: the schedule's {horizon} samples are fewer than one batch of {last.batch}"
        raise UserError("batch.last", at, "set batch.last: keep or train longer")
    return horizon - short, steps - 1, f"{reason}, {short} dropped"


def _adascale(config: Config, schedule: Schedule, s: Situation) -> tuple[int, int, str]:
    """(most samples that rule adascale may use, the same in steps, the reason with what is expected)."""
    most = config.scaling.budget_samples or round(schedule.horizon * max(s.k, 1))
    reason = "scaling.budget_samples" if config.scaling.budget_samples else f"at most: {schedule.horizon} x k, at a gain of 1"
    spent = adascale_samples(schedule.horizon, s)
    if spent is not None:
        reason = f"{reason}; about {spent} samples are expected at noise scale {s.noise_scale:g}"
    return most, -(-most // s.global_batch), reason


def _warnings(config: Config, p: Plan, facts: OptimizerFacts, done: Rewrite) -> tuple[Caution, ...]:
    """The warnings that hold for a plan."""
    horizon, unreached = p.schedule.horizon, len(never_reached(p.schedule))
    mode, beta2 = config.scaling.betas or done.betas, p.betas[1] if p.betas else None
    halved = beta2 is not None and mode == "keep"
    return cautions(
        Facts(
            family=facts.family,
            rule=p.rule,
            k=p.ratio,
            lr_factor=done.lr,
            world=p.world_size,
            share=p.global_batch // p.world_size,
            backend=p.backend,
            global_batch=p.global_batch,
            reference_batch=p.reference_batch,
            noise_scale=config.scaling.noise_scale,
            lr=p.target_lr,
            reference_lr=p.reference_lr,
            largest_stable_lr=p.largest_stable_lr,
            beta2=beta2,
            beta2_scaled=scale_beta(beta2, p.ratio, "half_life") if beta2 is not None and halved else None,
            warmup=p.warmup_samples,
            warmup_factor=done.warmup,
            warmup_limit=longest_warmup(p.schedule),
            warmup_steps=p.warmup_steps,
            total_steps=p.total_steps,
            dropped=max(horizon - p.total_samples, 0) if p.rule != "adascale" else 0,
            horizon=horizon,
            wasted=0 if config.scaling.extend else round(horizon * max(done.horizon - 1, 0)),
            budget=p.total_samples,
            overspent=_overspent(config, p),
            rough_noise=not _measures_noise(p),
            milestones=tuple(sorted(config.schedule.milestones))[: len(p.schedule.milestones) - unreached],
            unreached=unreached,
            sample_tokens=p.sample_tokens,
            parameters=config.recipe.parameters,
            reference_parameters=config.reference.parameters,
        )
    )


def _measures_noise(p: Plan) -> bool:
    """Whether gradients of two batches are seen in a step: those of passes, or of ranks before they meet."""
    return (p.backend == "ddp" and p.processes > 1) or (p.backend in ("ddp", "zero0") and p.passes > 1)


def _overspent(config: Config, p: Plan) -> int:
    """Samples by which rule adascale is expected to miss its budget."""
    if p.rule != "adascale":
        return 0
    spent = adascale_samples(p.schedule.horizon, Situation(p.global_batch, p.reference_batch, config.scaling.noise_scale))
    return max(spent - p.total_samples, 0) if spent is not None else 0


def _optimizer(config: Config, world: World) -> OptimizerFacts:
    """The optimizer's facts, after a check that the settings given are ones it has."""
    o, facts = config.optim, optimizer_facts(config.optim.name)
    for name, value, has in (
        ("momentum", o.momentum, facts.momentum),
        ("betas", o.betas, facts.betas),
        ("alpha", o.alpha, facts.alpha),
        ("eps", o.eps, facts.eps),
    ):
        if value is not None and has is None:
            lacks = f"the plan does not know what it does to {o.name}" if facts.family == "unknown" else f"{o.name} has no {name}"
            raise UserError(f"optim.{name}", f"is {value}, but {lacks}", "leave it out")
    if o.adamw_lr is not None and o.name != "muon":
        raise UserError("optim.adamw_lr", f"is {o.adamw_lr:g}, but {o.name} has one rate for all parameters", "leave it out")
    if config.scaling.betas not in (None, "keep") and facts.betas is None and facts.alpha is None:
        raise UserError("scaling.betas", f"is {config.scaling.betas}, but {o.name} has no betas", "leave it out")
    if config.scaling.weight_decay == "timescale" and not facts.has_timescale:
        at = (
            f"is timescale, but the weight decay of {o.name} is coupled: it is divided by the gradient's size, and has no timescale"
        )
        raise UserError("scaling.weight_decay", at, "set keep, or optim.name: adamw")
    if facts.nesterov and o.momentum == 0:
        raise UserError("optim.momentum", "is 0, but nesterov needs momentum", "give 0.9, or optim.name: sgd")
    if config.precision == "fp16" and world.device == "cpu":
        raise UserError("precision", "fp16 does nothing on a CPU", "use bf16 or fp32 there")
    return facts


def _schedule(config: Config, lengths: Lengths, done: Rewrite) -> tuple[Schedule, dict[str, str]]:
    """The learning rate over samples, with the reasons of its lengths."""
    s = config.schedule
    check_settings(s)
    requested, unit = lengths.horizon(config)
    horizon = round(requested * done.horizon) if config.scaling.extend else requested
    warmup, warmup_reason = lengths.warmup(config, done.lr > 1, horizon, done.warmup)
    peak = config.optim.lr * done.lr
    start = 0.0 if config.scaling.warmup_from == "zero" and warmup else min(config.optim.lr, peak)
    if s.shape == "inverse_sqrt" and not warmup:
        raise UserError("schedule.shape", "inverse_sqrt without a warm-up has no scale", "set scaling.warmup_epochs")
    schedule = Schedule(
        shape=s.shape,
        start=start,
        peak=peak,
        warmup=warmup,
        horizon=horizon,
        milestones=tuple(sorted(lengths.shape_length(config, "milestones", m) for m in s.milestones)),
        gamma=s.gamma,
        every=lengths.shape_length(config, "every", s.every) if s.every else 0,
        decay_fraction=s.decay_fraction,
        final_fraction=s.final_fraction,
    )
    check_lengths(schedule)
    ramp = "zero" if start == 0 else f"the reference lr {start:g}"
    steps = "held fixed in samples, so the steps follow by division"
    return schedule, {
        "total_samples": unit if horizon == requested else f"{unit}, x {done.horizon:g} by scaling.extend",
        "warmup_samples": f"{warmup_reason}, from {ramp}" if warmup else warmup_reason,
        "warmup_steps": steps,
        "schedule": f"shape {s.shape} over samples",
    }
