"""What may go wrong with a plan that is valid: a code, one sentence, and the setting that avoids it, with its value."""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, floor

from harness.plan.optimizers import Family
from harness.plan.published_laws import LEAST_TOKENS, SPREAD, WIDTH, best_batch

FEW_WARMUP_STEPS = 100
"""Measured on small nets: runs with 49 warm-up steps mostly died, with 98 they lived."""
FEW_STEPS = 300
LARGE_RATIO = 8.0
LONG_WARMUP = 2 / 3
"""The largest share of the schedule for a warm-up that is proposed."""
SHOWN = 2
"""How many warnings of a plan are printed, the most serious; JSON has all."""
_POWER = {"linear": 1.0, "sqrt": 0.5, "adam": 0.5, "adam_sde": 0.5, "legw": 0.5}
"""Rules whose lr is a power of the batch."""


@dataclass(frozen=True)
class Caution:
    """A warning: `code` for machines, `message` for people (one sentence and the remedy)."""

    code: str
    message: str


@dataclass(frozen=True)
class Facts:
    """The numbers of a plan that the warnings look at. Lengths and batches in samples.

    `share` is what one rank has of a step. `beta2_scaled` is what scaling.betas: half_life would make of beta2, None if it is in
    force or the optimizer has none. `warmup_factor` is the rule's own on the length of the warm-up, `warmup_limit` the longest that
    the schedule has room for. `milestones` are those of the run file that the schedule reaches, `unreached` how many it does not.
    """

    family: Family
    rule: str
    k: float
    lr_factor: float
    world: int
    share: int
    backend: str
    global_batch: int
    reference_batch: int
    noise_scale: float | None
    lr: float
    reference_lr: float
    largest_stable_lr: float | None
    beta2: float | None
    beta2_scaled: float | None
    warmup: int
    warmup_factor: float
    warmup_limit: int
    warmup_steps: int
    total_steps: int
    dropped: int
    horizon: int
    wasted: int
    budget: int
    overspent: int
    rough_noise: bool
    milestones: tuple[float, ...]
    unreached: int
    sample_tokens: int | None = None
    parameters: int | None = None
    reference_parameters: int | None = None


def cautions(f: Facts) -> tuple[Caution, ...]:
    """All warnings that hold, most serious first: what kills a run, what makes it another run, what wastes."""
    found = ((code, warning(f)) for code, warning in _WARNINGS.items())
    return tuple(Caution(code, message) for code, message in found if message)


def _past_headroom(f: Facts) -> str:
    if f.largest_stable_lr is None or f.lr_factor <= 1 or f.lr <= f.largest_stable_lr:
        return ""
    headroom = f.largest_stable_lr / f.reference_lr
    at = f"lr {f.lr:g} is past {f.largest_stable_lr:g}, the largest that stayed stable at the reference batch"
    at += f" (lr has headroom for x{headroom:.3g})"
    if f.rule in ("linear", "noise") and f.k**0.5 <= headroom:
        return f"{at}; set scaling.rule: sqrt"
    power = _POWER.get(f.rule)
    smaller = _total(f, f.reference_batch * headroom ** (1 / power)) if power else ""
    return f"{at}; set {smaller or f'optim.lr: {_down(f.reference_lr * f.largest_stable_lr / f.lr)}'}"


def _adam_linear(f: Facts) -> str:
    holds = f.family == "adam" and f.rule == "linear" and f.k >= 2
    return f"rule linear at k = {f.k:g} overshoots with an Adam-like optimizer; set scaling.rule: adam" if holds else ""


def _short_warmup(f: Facts) -> str:
    if f.lr_factor <= 1 or f.warmup_steps >= FEW_WARMUP_STEPS:
        return ""
    at = f"only {f.warmup_steps} warm-up steps for lr x{f.lr_factor:g}, and runs with fewer than {FEW_WARMUP_STEPS} often diverge"
    return f"{at}; {_longer_warmup(f, max(FEW_WARMUP_STEPS, _adam_steps(f.beta2)))}"


def _past_noise_scale(f: Facts) -> str:
    if f.noise_scale is None or f.global_batch <= f.noise_scale:
        return ""
    at = f"the global batch {f.global_batch} is past the noise scale {f.noise_scale:g}: samples are wasted"
    smaller = _total(f, f.noise_scale)
    return f"{at}; {f'set {smaller}' if smaller else f'use at most {max(floor(f.noise_scale), 1)} GPUs'}"


def _short_adam_warmup(f: Facts) -> str:
    need = _adam_steps(f.beta2)
    if f.warmup_steps >= need or _short_warmup(f):  # the remedy for a short warm-up covers Adam, too
        return ""
    at = f"{f.warmup_steps} warm-up steps, Adam at beta2 = {f.beta2:g} wants 2/(1-beta2) = {need} (Ma & Yarats 2021)"
    if f.beta2_scaled is not None and f.k > 1 and f.warmup_steps >= _adam_steps(f.beta2_scaled):
        return f"{at}; set scaling.betas: half_life"
    return f"{at}; {_longer_warmup(f, need)}"


def _unreached_milestones(f: Facts) -> str:
    if not f.unreached:
        return ""
    at = f"{f.unreached} of {f.unreached + len(f.milestones)} milestones are not before the schedule's end: lr never drops there"
    kept = f"schedule.milestones: [{', '.join(f'{m:g}' for m in f.milestones)}]" if f.milestones else "schedule.shape: constant"
    return f"{at}; set {kept}, or train longer"


def _over_budget(f: Facts) -> str:
    at = f"rule adascale is expected to need {f.overspent} samples more than its budget"
    return f"{at}; set scaling.budget_samples: {f.budget + f.overspent}" if f.overspent > 0 else ""


def _few_steps(f: Facts) -> str:
    if f.k <= 1 or f.total_steps >= FEW_STEPS:
        return ""
    at = f"the whole run is {f.total_steps} steps; under {FEW_STEPS} no scaling rule is reliable"
    smaller = _total(f, max(f.horizon // FEW_STEPS, f.reference_batch))
    return f"{at}; set {smaller or f'schedule.samples: {FEW_STEPS * f.global_batch}'}"


def _unknown_headroom(f: Facts) -> str:
    if f.k < LARGE_RATIO or f.lr_factor <= 1 or f.largest_stable_lr is not None:
        return ""
    at = f"lr is raised x{f.lr_factor:g}, and the largest stable lr has not been measured"
    smaller = _total(f, f.reference_batch * LARGE_RATIO / 2)
    measure = "run `widebatch lr-range RUN.yaml` and set scaling.largest_stable_lr to what it finds"
    return f"{at}; {measure}{f', or set {smaller} first' if smaller else ''}"


def _past_published_batch(f: Facts) -> str:
    if f.sample_tokens is None or f.k <= 1 or f.noise_scale is not None:
        return ""
    horizon, batch = f.horizon * f.sample_tokens, f.global_batch * f.sample_tokens
    best = best_batch(horizon)
    if horizon < LEAST_TOKENS or batch <= WIDTH * best:
        return ""
    at = f"a batch of {batch:,} tokens is {batch / best:.3g} times the best for {horizon:,} tokens by Step Law (arXiv 2503.04715;"
    smaller = _total(f, WIDTH * best / f.sample_tokens) or f"scaling.noise_scale: {f.global_batch} if that is measured"
    return f"{at} {SPREAD}): samples may be wasted; measure the noise scale, or set {smaller}"


def _other_size(f: Facts) -> str:
    if f.parameters is None or f.reference_parameters is None or f.parameters == f.reference_parameters:
        return ""
    size = f.parameters / f.reference_parameters
    at = f"the model is {size:.3g} times the reference's, and no rule here carries lr over sizes"
    at += f" (by Step Law's N^-0.713, arXiv 2503.04715, it would be x{size**-0.713:.3g})"
    return f"{at}; tune optim.lr at this size, then set reference.parameters: {f.parameters}"


def _dropped_samples(f: Facts) -> str:
    holds = f.dropped * 100 > f.horizon
    return f"the last {f.dropped} samples of {f.horizon} are dropped, over 1%; set batch.last: keep" if holds else ""


def _more_samples(f: Facts) -> str:
    holds = f.wasted > 0
    return f"equal progress at this batch takes {f.wasted} more samples; set scaling.extend: true" if holds else ""


def _rough_gain(f: Facts) -> str:
    if f.rule != "adascale" or f.k <= 1 or not f.rough_noise:
        return ""
    at = "rule adascale relies on the noise scale, which the optimizer's first moment alone may estimate many times too high"
    passes = next((d for d in range(f.share // 2, 0, -1) if f.share % d == 0), None)
    settings = [f"batch.micro: {passes}"] if passes else []
    settings += ["backend.name: ddp"] if f.backend not in ("ddp", "zero0") else []
    return f"{at}; set {' and '.join(settings) or f'batch.total: {2 * f.global_batch} and batch.micro: 1'}"


_WARNINGS: dict[str, Callable[[Facts], str]] = {
    "past_headroom": _past_headroom,
    "adam_linear": _adam_linear,
    "short_warmup": _short_warmup,
    "past_noise_scale": _past_noise_scale,
    "short_adam_warmup": _short_adam_warmup,
    "unreached_milestones": _unreached_milestones,
    "over_budget": _over_budget,
    "few_steps": _few_steps,
    "unknown_headroom": _unknown_headroom,
    "past_published_batch": _past_published_batch,
    "other_size": _other_size,
    "dropped_samples": _dropped_samples,
    "more_samples": _more_samples,
    "rough_gain": _rough_gain,
}


def _adam_steps(beta2: float | None) -> int:
    """Warm-up steps that Adam wants (Ma & Yarats 2021, 1910.04209); none without a beta2."""
    return 0 if beta2 is None or beta2 >= 1 else round(2 / (1 - beta2))


def _longer_warmup(f: Facts, steps: int) -> str:
    """The remedy for a warm-up of fewer than `steps` steps: a longer one, else a smaller batch, else a longer run."""
    samples = ceil(steps * f.global_batch / f.warmup_factor)
    if round(samples * f.warmup_factor) <= min(f.warmup_limit, LONG_WARMUP * f.horizon):
        return f"set scaling.warmup_samples: {samples}"
    smaller, longer = _total(f, f.warmup / steps), ceil(samples * f.warmup_factor / LONG_WARMUP)
    return f"set {smaller}" if smaller else f"set scaling.warmup_samples: {samples} and schedule.samples: {longer}"


def _total(f: Facts, most: float) -> str:
    """batch.total of at most `most` samples, smaller than what the plan has, or nothing: a multiple of the ranks."""
    batch = floor(most) // f.world * f.world
    return f"batch.total: {batch}" if 0 < batch < f.global_batch else ""


def _down(value: float) -> str:
    """Rounded down to three digits."""
    digits = f"{value:.3g}"
    return digits if float(digits) <= value else f"{value * (1 - 5e-3):.3g}"
