"""plan(config, world) -> Plan: the only place where a number of a run is derived. Pure, frozen, no torch."""

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from harness.plan.backends import check_backend
from harness.plan.batch import resplit, split_batch
from harness.plan.cadence import cadence
from harness.plan.cautions import Caution, Facts, cautions
from harness.plan.config import Config
from harness.plan.errors import UserError
from harness.plan.guard import check_guard
from harness.plan.lengths import Lengths
from harness.plan.optimizers import OptimizerFacts, optimizer_facts
from harness.plan.reasons import reasons
from harness.plan.rules import Rewrite, Situation, adascale_samples, rewrite, scale_beta, scale_betas, scale_decay
from harness.plan.schedule import Schedule
from harness.plan.stages import Stage, stage_at, stages, walk
from harness.plan.world import World


@dataclass(frozen=True)
class Plan:
    """Every number of a run. Batches and lengths in samples, `*_steps` in optimizer steps, rates absolute.

    `target_lr` (JSON key `lr`) is the rate after the warm-up; `lr(step)` the rate of a step. `sources` gives each number's reason.
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
    optimizer: str
    weight_decay: float
    momentum: float | None
    betas: tuple[float, float] | None
    eps: float | None
    ema: float | None
    clip: float | None
    warmup_samples: int
    warmup_steps: int
    total_samples: int
    total_steps: int
    dataset_samples: int | None
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

    def lr(self, step: int) -> float:
        """The learning rate of optimizer step `step` (the first is 0), if all steps before it were of this plan."""
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
        size, accumulate = resplit(batch // self.world_size, micro or self.micro_batch)
        ema = self.ema and scale_beta(self.ema, batch / self.global_batch, "half_life")
        ratio = batch / self.reference_batch
        return replace(self, global_batch=batch, micro_batch=size, accumulate=accumulate, ratio=ratio, ema=ema)

    @property
    def passes(self) -> int:
        """Forward passes of one process in a full optimizer step: accumulation, times the ranks it plays."""
        return self.accumulate * (self.world_size // self.processes)

    def to_json(self) -> dict[str, Any]:
        """Plain data with the outside names; `lr` is the rate after the warm-up."""
        tree: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        tree["lr"] = tree.pop("target_lr")
        return tree


def plan(config: Config, world: World, dataset: int | None = None) -> Plan:
    """Derive every number of the run `config` on `world`. `dataset`: training samples, where the run file does not say.

    Pure. Raises UserError, naming setting, value and remedy, for a plan that cannot be.
    """
    dataset = config.recipe.samples or dataset
    lengths = Lengths(dataset)
    facts = _optimizer(config, world)
    check_backend(config, facts, world)
    cadence(config.checkpoint)
    split = split_batch(config.batch, world)
    situation = Situation(split.global_batch, config.batch.reference, config.scaling.noise_scale)
    rule, done = rewrite(config.scaling.rule, facts.family, situation)
    schedule, why = _schedule(config, lengths, done)
    check_guard(config.guard, schedule, config.backend.name)
    found = stages(config.batch, schedule, split.global_batch, world.size)
    k = situation.k
    total, steps, steps_reason = _adascale(config, schedule, situation) if rule == "adascale" else _steps(config, schedule, found)
    betas = config.optim.betas or facts.betas
    new_betas = betas and scale_betas(betas, k, config.scaling.betas or done.betas, rule)
    eps = config.optim.eps or facts.eps
    decay_mode = config.scaling.weight_decay or done.weight_decay
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
        optimizer=config.optim.name,
        weight_decay=scale_decay(config.optim.weight_decay, k, done.lr, decay_mode),
        momentum=config.optim.momentum if config.optim.momentum is not None else facts.momentum,
        betas=new_betas,
        eps=eps and eps * done.eps,
        ema=config.optim.ema and scale_beta(config.optim.ema, k, "half_life"),
        clip=config.optim.clip,
        warmup_samples=schedule.warmup,
        warmup_steps=warmup_steps,
        total_samples=total,
        total_steps=steps,
        dataset_samples=dataset,
        eval_every_samples=lengths.cadence("eval", config.eval.every_epochs, config.eval.every_samples),
        checkpoint_every_samples=lengths.cadence("checkpoint", config.checkpoint.every_epochs, config.checkpoint.every_samples),
        patience_samples=lengths.optional("eval.patience_epochs", config.eval.patience_epochs, config.eval.patience_samples),
        recover_samples=lengths.optional("guard.recover_epochs", config.guard.recover_epochs, config.guard.recover_samples) or 0,
        noise_scale=config.scaling.noise_scale,
        largest_stable_lr=config.scaling.largest_stable_lr,
        schedule=schedule,
        stages=found,
        backend=config.backend.name,
        precision=config.precision,
        warnings=(),
        sources={**reasons(config, world, split, done, facts), **why, "total_steps": steps_reason},
    )
    return replace(planned, warnings=_warnings(config, planned, facts, done))


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
    """(most samples that rule adascale may spend, the steps these are, the reason with what is expected)."""
    most = config.scaling.budget_samples or round(schedule.horizon * max(s.k, 1))
    reason = "scaling.budget_samples" if config.scaling.budget_samples else f"at most: {schedule.horizon} x k, at a gain of 1"
    spent = adascale_samples(schedule.horizon, s)
    if spent is not None:
        reason = f"{reason}; about {spent} samples are expected at noise scale {s.noise_scale:g}"
    return most, -(-most // s.global_batch), reason


def _warnings(config: Config, p: Plan, facts: OptimizerFacts, done: Rewrite) -> tuple[Caution, ...]:
    """The warnings that hold for a plan."""
    horizon = p.schedule.horizon
    return cautions(
        Facts(
            family=facts.family,
            rule=p.rule,
            k=p.ratio,
            lr_factor=done.lr,
            global_batch=p.global_batch,
            noise_scale=config.scaling.noise_scale,
            lr=p.target_lr,
            reference_lr=p.reference_lr,
            largest_stable_lr=p.largest_stable_lr,
            beta2=p.betas[1] if p.betas else None,
            warmup_steps=p.warmup_steps,
            total_steps=p.total_steps,
            dropped=max(horizon - p.total_samples, 0) if p.rule != "adascale" else 0,
            horizon=horizon,
            wasted=0 if config.scaling.extend else round(horizon * max(done.horizon - 1, 0)),
            overspent=_overspent(config, p),
            rough_noise=not _measures_noise(p),
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
        ("eps", o.eps, facts.eps),
    ):
        if value is not None and has is None:
            raise UserError(f"optim.{name}", f"is {value}, but {o.name} has no {name}", "leave it out")
    if config.scaling.betas in ("sde", "half_life") and facts.betas is None:
        raise UserError("scaling.betas", f"is {config.scaling.betas}, but {o.name} has no betas", "leave it out")
    if facts.nesterov and o.momentum == 0:
        raise UserError("optim.momentum", "is 0, but nesterov needs momentum", "give 0.9, or optim.name: sgd")
    if config.precision == "fp16" and world.device == "cpu":
        raise UserError("precision", "fp16 does nothing on a CPU", "use bf16 or fp32 there")
    return facts


def _schedule(config: Config, lengths: Lengths, done: Rewrite) -> tuple[Schedule, dict[str, str]]:
    """The learning rate over samples, with the reasons of its lengths."""
    s = config.schedule
    wished = lengths.horizon(config)
    horizon = round(wished * done.horizon) if config.scaling.extend else wished
    unit = f"schedule.samples {wished}" if s.samples else f"schedule.epochs {s.epochs:g} x {lengths.dataset} samples"
    warmup, warmup_reason = lengths.warmup(config, done.lr > 1, horizon, done.warmup)
    peak = config.optim.lr * done.lr
    start = 0.0 if config.scaling.warmup_from == "zero" and warmup else min(config.optim.lr, peak)
    if s.shape == "step" and not s.milestones:
        raise UserError("schedule.milestones", "missing, and shape step needs them", "give a list such as [30, 60, 80]")
    if s.shape in ("exponential", "plateau") and s.every is None:
        raise UserError("schedule.every", f"missing, and shape {s.shape} needs it", "give a length in the schedule's unit")
    if s.shape == "inverse_sqrt" and not warmup:
        raise UserError("schedule.shape", "inverse_sqrt without a warm-up has no scale", "set scaling.warmup_epochs")
    schedule = Schedule(
        shape=s.shape,
        start=start,
        peak=peak,
        warmup=warmup,
        horizon=horizon,
        milestones=tuple(lengths.shape_length(config, "milestones", m) for m in s.milestones),
        gamma=s.gamma,
        every=max(lengths.shape_length(config, "every", s.every), 1) if s.every else 0,
        decay_fraction=s.decay_fraction,
        final_fraction=s.final_fraction,
    )
    ramp = "zero" if start == 0 else f"the reference lr {start:g}"
    steps = "held fixed in samples, so the steps follow by division"
    return schedule, {
        "total_samples": unit if horizon == wished else f"{unit}, x {done.horizon:g} by scaling.extend",
        "warmup_samples": f"{warmup_reason}, from {ramp}" if warmup else warmup_reason,
        "warmup_steps": steps,
        "schedule": f"shape {s.shape} over samples",
    }
