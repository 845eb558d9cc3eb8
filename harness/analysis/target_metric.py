"""The metric by which runs are compared, which way is better, and the value that is to be reached."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, variance

from harness.config.errors import UserError

HIGHER, LOWER = ("accuracy",), ("loss", "error", "bits", "perplexity")
"""Words in a metric's name that say which way is better."""
TOLERANCE_PCT = 2.0
"""A metric for which lower is better still counts as equal if it is worse by up to this share."""
TOLERANCE_POINTS = 0.5
"""A metric in percent, for which higher is better, still counts as equal if it is worse by up to this."""
_TARGET = re.compile(r"(eval/\w+)\s*(>=|<=|=)\s*([-+.\deE]+)")


@dataclass(frozen=True)
class Target:
    """`value` is the least (where `higher`) or most that counts as reached; None: runs are compared at their ends alone."""

    metric: str
    higher: bool
    value: float | None = None

    def __str__(self) -> str:
        name = self.metric.removeprefix("eval/")
        return name if self.value is None else f"{name} {'>=' if self.higher else '<='} {self.value:g}"


def read_target(text: str) -> Target:
    """A target as one writes it: `eval/accuracy_pct>=97`, or with = where the metric's name says which way. Raises UserError."""
    found = _TARGET.fullmatch(text.strip())
    try:
        metric, sign, value = found.groups() if found else ("", "", "")
        number = float(value)
    except ValueError:
        raise UserError("--target", f"is {text!r}", "write a metric and a value, such as 'eval/accuracy_pct>=97'") from None
    if not math.isfinite(number):
        raise UserError("--target", f"is {text!r}", "give a finite value")
    return Target(metric, sign == ">=" if sign != "=" else direction(metric, "--target"), number)


def direction(metric: str, flag: str) -> bool:
    """Whether higher is better, by the metric's name. Raises UserError if it does not say."""
    words = metric.lower()
    if any(word in words for word in HIGHER):
        return True
    if any(word in words for word in LOWER):
        return False
    raise UserError(flag, f"{metric} does not say which way is better", f"give --target '{metric}>=VALUE' or '<='")


def held_within(values: Sequence[float], base: Sequence[float], target: Target) -> bool:
    """Whether the mean is as good as the base's: within the tolerance, or within two standard errors of the difference."""
    if not values or not base:
        return False
    worse = (mean(base) - mean(values)) * (1 if target.higher else -1)
    allowed = TOLERANCE_POINTS if target.higher else abs(mean(base)) * TOLERANCE_PCT / 100
    error = math.sqrt(sum(variance(v) / len(v) for v in (values, base) if len(v) > 1))
    return worse <= max(allowed, 2 * error)
