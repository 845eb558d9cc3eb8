"""The scaling rules: how the ratio k = global batch / reference batch rewrites a recipe. One pure function each.

Every duration is held fixed in samples. A rule is a prior, the journal is the evidence: over 35 workloads no
heuristic fitted all (Shallue et al. 2019, arXiv 1811.03600).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from harness.config.errors import UserError, did_you_mean
from harness.config.user_code import load_attribute
from harness.plan.optimizers import Family

Betas = tuple[float, float]
BetaMode = Literal["keep", "sde", "half_life", "half_life_both"]
DecayMode = Literal["keep", "timescale"]


@dataclass(frozen=True)
class Situation:
    """What a rule may look at. Batches and the noise scale are in samples; `betas` are those of the reference."""

    global_batch: int
    reference_batch: int
    noise_scale: float | None = None

    @property
    def k(self) -> float:
        """Global batch over reference batch."""
        return self.global_batch / self.reference_batch


@dataclass(frozen=True)
class Rewrite:
    """What a rule does to the recipe. `lr`, `eps`, `warmup` and `horizon` are factors; `horizon` is in samples."""

    lr: float
    reason: str
    source: str
    betas: BetaMode = "keep"
    weight_decay: DecayMode = "keep"
    eps: float = 1.0
    warmup: float = 1.0
    horizon: float = 1.0


def linear(s: Situation) -> Rewrite:
    """lr' = k lr (Goyal et al. 2017, arXiv 1706.02677, section 2.1), held with a gradual warm-up (section 2.2)."""
    return Rewrite(s.k, f"lr x k = x{s.k:g}", "Goyal et al. 2017, arXiv 1706.02677")


def sqrt(s: Situation) -> Rewrite:
    """lr' = sqrt(k) lr keeps the covariance of the updates (Krizhevsky 2014, 1404.5997; Hoffer et al. 2017, 1705.08741)."""
    return Rewrite(math.sqrt(s.k), f"lr x sqrt(k) = x{math.sqrt(s.k):g}", "Krizhevsky 2014, arXiv 1404.5997")


def adam_sde(s: Situation) -> Rewrite:
    """lr' = sqrt(k) lr, 1-beta' = k(1-beta) for both, eps' = eps/sqrt(k) (Malladi et al. 2022, 2205.10287). Needs k < 1/(1-beta1).

    The same paper's rule for RMSprop is this one without the momentum: 1-alpha' = k(1-alpha) (section 5).
    """
    root = math.sqrt(s.k)
    return Rewrite(root, f"lr x sqrt(k) = x{root:g}", "Malladi et al. 2022, arXiv 2205.10287", betas="sde", eps=1 / root)


def adam(s: Situation) -> Rewrite:
    """lr' = sqrt(k) lr, beta1 kept, beta2' = beta2^k, eps' = eps/sqrt(k), decoupled decay by constant timescale. Valid at any k.

    lr and eps: Malladi et al. 2022, 2205.10287. Betas: Marek et al. 2025, 2507.07101, section 4.3, who hold the half-life of the
    second moment fixed in samples and keep beta1. RMSprop's alpha is its beta2.
    """
    root = math.sqrt(s.k)
    source = "Malladi et al. 2022, arXiv 2205.10287; Marek et al. 2025, arXiv 2507.07101"
    return Rewrite(root, f"lr x sqrt(k) = x{root:g}", source, betas="half_life", weight_decay="timescale", eps=1 / root)


def legw(s: Situation) -> Rewrite:
    """lr' = sqrt(k) lr and the warm-up k times as many epochs, so as many steps (You et al. 2019, 1901.08256)."""
    root = math.sqrt(s.k)
    return Rewrite(root, f"lr x sqrt(k) = x{root:g}", "You et al. 2019, arXiv 1901.08256", warmup=s.k)


def noise(s: Situation) -> Rewrite:
    """lr' = lr (1 + Bn/B_ref) / (1 + Bn/B); equal progress takes k lr/lr' times the samples.

    McCandlish et al. 2018, 1812.06162.
    """
    bn = _noise_scale(s, "noise")
    factor = (1 + bn / s.reference_batch) / (1 + bn / s.global_batch)
    reason = f"lr x (1 + Bn/B_ref)/(1 + Bn/B) = x{factor:g} at noise scale Bn = {bn:g}"
    return Rewrite(factor, reason, "McCandlish et al. 2018, arXiv 1812.06162", horizon=s.k / factor)


def surge(s: Situation) -> Rewrite:
    """lr proportional to 2 / (sqrt(Bn/B) + sqrt(B/Bn)): it falls again past Bn (Li et al. 2024, 2405.14578)."""
    bn = _noise_scale(s, "surge")

    def level(batch: int) -> float:
        return 2 / (math.sqrt(bn / batch) + math.sqrt(batch / bn))

    factor = level(s.global_batch) / level(s.reference_batch)
    return Rewrite(factor, f"lr x{factor:g} on the surge curve at noise scale Bn = {bn:g}", "Li et al. 2024, arXiv 2405.14578")


def adascale(s: Situation) -> Rewrite:
    """The reference schedule times a gain r in [1, k] that the run measures (Johnson et al. 2020, 2007.05105, algorithm 2)."""
    return Rewrite(1.0, "the reference lr, x the gain in [1, k] that the run measures", "Johnson et al. 2020, arXiv 2007.05105")


def adascale_gain(noise_scale: float, reference_batch: float, k: float) -> float:
    """AdaScale's gain r in [1, k]: reference steps that one step at ratio k is worth (2007.05105, section 3.2).

    With s2 the variance of a gradient at the reference batch and m2 the squared mean gradient, r = (s2 + m2) / (s2/k + m2), and
    s2/m2 = noise scale / reference batch. Noise alone, an infinite noise scale, gives k.
    """
    if math.isinf(noise_scale):
        return k
    return (noise_scale / reference_batch + 1) / (noise_scale / (reference_batch * k) + 1)


def adascale_samples(horizon: int, s: Situation) -> int | None:
    """Samples that rule adascale will spend on a schedule of `horizon` samples; None while the noise scale is unknown."""
    return None if s.noise_scale is None else round(horizon * s.k / adascale_gain(s.noise_scale, s.reference_batch, s.k))


def none(s: Situation) -> Rewrite:
    """Nothing is rewritten."""
    return Rewrite(1.0, "rule none: kept", "the run file")


RULES: dict[str, Callable[[Situation], Rewrite]] = {
    "linear": linear,
    "sqrt": sqrt,
    "adam_sde": adam_sde,
    "adam": adam,
    "legw": legw,
    "noise": noise,
    "surge": surge,
    "adascale": adascale,
    "none": none,
}


def rewrite(name: str, family: Family, situation: Situation) -> tuple[str, Rewrite]:
    """Apply a rule by name: (the name of the rule taken, its rewrite). Raises UserError on an unknown name.

    auto for Adam is what loses least in this project's own measurements (`python -m tests.bench.adam_rules`): sqrt, with decoupled
    weight decay by constant timescale and betas kept.
    """
    if name == "auto":
        if family == "unknown" and situation.k != 1:
            at = f"is auto, which knows no rule for this optimizer at ratio {situation.k:g}"
            raise UserError("scaling.rule", at, "give sqrt (for optimizers like Adam), linear (like SGD) or none")
        taken = "linear" if family == "sgd" else "sqrt"
        done = RULES[taken](situation)
        reason = f"auto took {taken} for the {family} family: {done.reason}"
        return taken, replace(done, reason=reason, weight_decay="timescale" if family == "adam" else "keep")
    if ":" in name:
        return name, _custom(name, situation)
    if name not in RULES:
        known = [*RULES, "auto", "file.py:function", "package.module:function"]
        raise UserError("scaling.rule", f"{name!r} is not a rule", did_you_mean(name, known))
    return name, RULES[name](situation)


def scale_beta(beta: float, k: float, mode: BetaMode) -> float:
    """The decay rate per step of squared gradients, or of an average, at k times the batch.

    Kept; 1 - k(1-beta) (Malladi 2022); beta^k, the same half-life in samples (Marek 2025, section 4.3).
    """
    if mode in ("half_life", "half_life_both"):
        return float(beta**k)
    return 1 - k * (1 - beta) if mode == "sde" else beta


def scale_betas(betas: Betas, k: float, mode: BetaMode, rule: str = "adam_sde") -> Betas:
    """Both betas at k times the batch; half_life keeps beta1. Raises UserError if 1 - k(1-beta) would not be positive."""
    _check_bound({"beta1": betas[0], "beta2": betas[1]}, k, mode, rule)
    first = betas[0] if mode == "half_life" else scale_beta(betas[0], k, mode)
    return first, scale_beta(betas[1], k, mode)


def scale_alpha(alpha: float, k: float, mode: BetaMode, rule: str = "adam_sde") -> float:
    """RMSprop's alpha at k times the batch, as a beta2. Raises UserError if 1 - k(1-alpha) would not be positive."""
    _check_bound({"alpha": alpha}, k, mode, rule)
    return scale_beta(alpha, k, mode)


def _check_bound(rates: dict[str, float], k: float, mode: BetaMode, rule: str) -> None:
    """Raise UserError where mode sde is past the ratio at which a decay rate would be 0."""
    name = min(rates, key=lambda n: rates[n])
    bound = 1 / (1 - rates[name])
    if mode != "sde" or k < bound * (1 - 1e-9):  # 1/(1-0.9) is a hair over 10 in floats
        return
    past = f"ratio {k:g} is past its bound 1/(1-{name}) = {bound:g}"
    if rule != "adam_sde":
        raise UserError("scaling.betas", f"sde: {past}", "use half_life, which is valid at any ratio, or a smaller batch")
    raise UserError("scaling.rule", f"adam_sde: {past}", "use rule adam, which is valid at any ratio, or a smaller batch")


def scale_decay(weight_decay: float, k: float, lr_factor: float, mode: DecayMode) -> float:
    """wd' = wd k lr/lr' keeps the timescale B/(lr wd) (Wang & Aitchison 2024, 2405.13698); or wd kept.

    With k over the ratio of the horizons, B/(lr wd D) is kept.
    """
    return weight_decay * k / lr_factor if mode == "timescale" else weight_decay


def _custom(name: str, situation: Situation) -> Rewrite:
    function = load_attribute("scaling.rule", name)
    try:
        factor = function(situation.k) if callable(function) else None
    except Exception as e:
        at = f"{name} failed at ratio {situation.k:g}: {type(e).__name__}: {e}"
        raise UserError("scaling.rule", at, "fix the function") from e
    if not isinstance(factor, int | float) or not math.isfinite(factor) or factor <= 0:
        raise UserError("scaling.rule", f"{name} gave {factor!r} at ratio {situation.k:g}", "return a positive lr factor")
    return Rewrite(float(factor), f"lr x{factor:g} by {name.rsplit('/', 1)[-1]}", name)


def _noise_scale(s: Situation, rule: str) -> float:
    if s.noise_scale is None:
        remedy = "measure it (batch/noise_scale_samples in a journal) or use rule linear, sqrt or adam"
        raise UserError("scaling.noise_scale", f"missing, and rule {rule} needs it", remedy)
    return s.noise_scale
