"""What may go wrong with a plan that is valid: a code, one sentence, the remedy."""

from dataclasses import dataclass

from harness.plan.optimizers import Family

FEW_WARMUP_STEPS = 100
"""Measured on small nets: runs with 49 warm-up steps mostly died, with 98 they lived."""
FEW_STEPS = 300
LARGE_RATIO = 8.0


@dataclass(frozen=True)
class Caution:
    """A warning: `code` for machines, `message` for people (one sentence and the remedy)."""

    code: str
    message: str


@dataclass(frozen=True)
class Facts:
    """The numbers of a plan that the warnings look at."""

    family: Family
    rule: str
    k: float
    lr_factor: float
    global_batch: int
    noise_scale: float | None
    lr: float
    reference_lr: float
    largest_stable_lr: float | None
    beta2: float | None
    warmup_steps: int
    total_steps: int
    dropped: int
    horizon: int
    wasted: int
    overspent: int
    rough_noise: bool


def cautions(f: Facts) -> tuple[Caution, ...]:
    """All warnings that hold, most serious first."""
    found: list[Caution] = []

    def say(when: bool, code: str, message: str) -> None:
        if when:
            found.append(Caution(code, message))

    if f.noise_scale is not None:
        at = f"the global batch {f.global_batch} is past the noise scale {f.noise_scale:g}: samples are wasted"
        say(f.global_batch > f.noise_scale, "past_noise_scale", f"{at}; use a batch of at most {f.noise_scale:.0f}")
    adam_linear = f.family == "adam" and f.rule == "linear" and f.k >= 2
    at = f"rule linear at k = {f.k:g} overshoots with an Adam-like optimizer"
    say(adam_linear, "adam_linear", f"{at}; set scaling.rule: adam")
    at = f"only {f.warmup_steps} warm-up steps for lr x{f.lr_factor:g}, under {FEW_WARMUP_STEPS} most runs died"
    short = f.lr_factor > 1 and f.warmup_steps < FEW_WARMUP_STEPS
    say(short, "short_warmup", f"{at}; lengthen scaling.warmup_epochs or use a smaller batch")
    if f.beta2 is not None and f.beta2 < 1:
        need = round(2 / (1 - f.beta2))
        at = f"{f.warmup_steps} warm-up steps, Adam at beta2 = {f.beta2:g} wants 2/(1-beta2) = {need} (Ma & Yarats 2021)"
        say(f.warmup_steps < need, "short_adam_warmup", f"{at}; lengthen the warm-up, or set scaling.betas: half_life")
    at = f"the whole run is {f.total_steps} steps, too few for a scaling rule to hold"
    say(f.k > 1 and f.total_steps < FEW_STEPS, "few_steps", f"{at}; train longer or use a smaller batch")
    at = f"the last {f.dropped} samples of {f.horizon} are dropped, over 1%"
    say(f.dropped * 100 > f.horizon, "dropped_samples", f"{at}; set batch.last: keep or use a smaller batch")
    at = f"at k = {f.k:g} nobody knows whether lr has headroom for x{f.lr_factor:g}"
    say(
        f.k >= LARGE_RATIO and f.lr_factor > 1 and f.largest_stable_lr is None,
        "unknown_headroom",
        f"{at}; try k = {f.k / 2:g} first and compare losses",
    )
    if f.largest_stable_lr is not None:
        at = f"lr {f.lr:g} is past {f.largest_stable_lr:g}, the largest that stayed stable at the reference batch"
        past = f.lr_factor > 1 and f.lr > f.largest_stable_lr
        headroom = f"lr has headroom for x{f.largest_stable_lr / f.reference_lr:.3g}"
        say(past, "past_headroom", f"{at} ({headroom}); use a smaller batch, or set scaling.rule: sqrt")
    at = f"equal progress at this batch takes {f.wasted} more samples"
    say(f.wasted > 0, "more_samples", f"{at}; set scaling.extend: true or accept a higher loss")
    at = f"rule adascale is expected to need {f.overspent} samples more than its budget"
    say(f.overspent > 0, "over_budget", f"{at}; raise scaling.budget_samples or use a smaller batch")
    at = "rule adascale lives by the noise scale, which the optimizer's first moment alone may tell many times too high"
    rough = f.rule == "adascale" and f.k > 1 and f.rough_noise
    say(rough, "rough_gain", f"{at}; set batch.micro so that a step has passes, with backend.name: ddp")
    return tuple(found)
