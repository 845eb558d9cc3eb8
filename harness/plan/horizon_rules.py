"""Another horizon than the one a recipe was tuned at: how D / D0 rewrites lr, weight decay and eps, beside the rule for the batch.

lr' = lr x (D0/D)^a beside the batch's factor. For Adam on language models Bjorck et al. 2024 (arXiv 2409.19913, section 4) fit
a = 0.32 over models of 0.76 to 2.7 billion weights; smaller ones fell faster, up to 0.7. Marin's recipe for AdamH takes 0.3. Where
the batch is tuned again at each horizon the best rate can even rise (Step Law, arXiv 2503.04715: N^-0.713 D^0.307).
wd' keeps B/(lr wd D), where the rule keeps B/(lr wd) (Wang & Aitchison 2024, 2405.13698; Bergsma et al. 2025, 2505.13738).
eps' = eps sqrt(B0 D / (B D0)), where the rule rewrites eps (Marin).
"""

import math
from dataclasses import replace

from harness.config.errors import UserError
from harness.config.schema import Config
from harness.plan.optimizers import Family
from harness.plan.scaling_rules import Rewrite

EXPONENT = 0.32
"""Bjorck et al. 2024, for Adam."""
_SOURCE = "Bjorck et al. 2024, arXiv 2409.19913"
_SCALES_EPS = ("adam", "adam_sde")
_MOST = 1e9
"""A factor on lr past this, or below its inverse, is a slip of the pen."""


def stretch(config: Config, horizon: int, tokens: int | None) -> float:
    """D / D0: the schedule's `horizon` in samples of `tokens` tokens over the reference's; 1 where that is not stated.

    Raises UserError.
    """
    known = config.reference
    if known.samples is not None and known.tokens is not None:
        at = f"has both samples {known.samples} and tokens {known.tokens}"
        raise UserError("reference", at, "give one of them")
    if known.tokens is None:
        return 1.0 if known.samples is None else horizon / known.samples
    if tokens is None:
        at = f"missing, and reference.tokens: {known.tokens:,} needs it"
        raise UserError("recipe.sample_tokens", at, "state it, or give reference.samples")
    return horizon * tokens / known.tokens


def at_horizon(done: Rewrite, config: Config, ratio: float, family: Family, rule: str) -> Rewrite:
    """What a rule does to a recipe at `ratio` = D / D0 times the reference's horizon. Raises UserError."""
    given = config.scaling.horizon_exponent
    if config.reference.samples is None and config.reference.tokens is None:
        if given is not None:
            at = f"is {given:g}, and the reference's horizon is not stated"
            raise UserError("scaling.horizon_exponent", at, "give reference.tokens or reference.samples, or leave it out")
        return done
    exponent = (EXPONENT if family == "adam" else 0.0) if given is None else given
    factor = _factor(ratio, exponent)
    why = f"(D0/D)^{exponent:g} = x{factor:.4g} at D/D0 = {ratio:.4g}"
    source = f"{done.source}; {_SOURCE}" if given is None and exponent else done.source
    if not exponent:
        why = f"D/D0 = {ratio:.4g} leaves lr as it is: no law is known for {family} optimizers" if given is None else why
    eps = done.eps * math.sqrt(ratio) if rule in _SCALES_EPS else done.eps
    return replace(done, lr=done.lr * factor, eps=eps, reason=f"{done.reason}, {why}", source=source)


def _factor(ratio: float, exponent: float) -> float:
    """(D0/D)^exponent. Raises UserError where no lr could be meant by it."""
    power = -exponent * math.log10(ratio)
    if abs(power) > math.log10(_MOST):
        at = f"is {exponent:g}, which at D/D0 = {ratio:.4g} is lr x 1e{power:+.0f}"
        raise UserError("scaling.horizon_exponent", at, "give a smaller one, such as 0.32, or check the reference's horizon")
    return float(ratio**-exponent)
