"""Which micro-batch: the search over those that divide a rank's share, and the choice among those that fit. Pure: others try."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NEAR = 0.98
"""A smaller micro-batch is preferred if it reaches this share of the best rate: it leaves more memory free."""


@dataclass(frozen=True)
class Tried:
    """What a trial of a micro-batch gave, the worst over ranks. `samples_per_s` is of all ranks together."""

    micro: int
    fits: bool
    peak_bytes: int | None = None
    base_bytes: int | None = None
    samples_per_s: float | None = None
    problem: str = ""


def agreed(micro: int, ranks: Sequence[Mapping[str, Any] | None]) -> Tried:
    """One trial out of what each rank wrote; it fits only where it fits on all. None: the rank wrote nothing, as another failed."""
    told = [r for r in ranks if r is not None]
    problem = next((r["problem"] for r in told if r.get("problem")), "")
    if problem or len(told) < len(ranks) or not told:
        return Tried(micro, False, problem=problem or "a rank ended without a report")
    peak = max(told, key=lambda r: r["peak_bytes"])
    return Tried(micro, True, peak["peak_bytes"], peak["base_bytes"], min(r["samples_per_s"] for r in told))


def candidates(share: int) -> list[int]:
    """The micro-batches that divide a rank's share, so that no pass is short."""
    return [d for d in range(1, share + 1) if share % d == 0]


def next_trial(share: int, tried: Mapping[int, bool], first: int = 1) -> int | None:
    """The micro-batch to try next, given what fitted; None when the largest that fits is known, or that none does.

    Up by powers of two (the candidate at or under each) until one does not fit or the share is reached, then by bisection.
    """
    options = candidates(share)
    fitting, failing = [m for m in options if tried.get(m)], [m for m in options if tried.get(m) is False]
    if not failing:
        if share in fitting:
            return None
        goal = 2 * fitting[-1] if fitting else first
        return max((m for m in options if m <= goal and m not in tried), default=min(m for m in options if m not in tried))
    between = [m for m in options if m < failing[0] and (not fitting or m > fitting[-1])]
    if not between:
        return None
    if not fitting:
        return between[0]
    middle = (fitting[-1] + failing[0]) / 2
    return min(between, key=lambda m: abs(m - middle))


def fastest(tried: Sequence[Tried]) -> Tried | None:
    """The one to use: the smallest whose rate is within a few percent of the best. None if none fits."""
    fitting = [t for t in tried if t.fits and t.samples_per_s is not None]
    best = max((t.samples_per_s or 0.0 for t in fitting), default=0.0)
    near = [t for t in fitting if (t.samples_per_s or 0.0) >= NEAR * best]
    return min(near, key=lambda t: t.micro, default=None)
