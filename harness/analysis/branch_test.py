"""The branch test: which continuations of a run, at larger batches, lose nothing (Merrill et al. 2025, 2505.23971, section 3.1).

As there: the largest ratio whose smoothed loss is at most eps above that of every smaller one, with eps 0.01, after the same number
of samples for all. They smooth by a running mean with alpha 0.5 over steps; here it is the mean of a branch's last half, so that
branches of few steps and of many are averaged over as many samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

EPS = 0.01
"""By how much the smoothed loss of a branch may exceed that of a smaller batch, in the loss's own unit."""
TAIL = 0.5
"""Share of a branch, from its end, over which its loss is averaged: the first half is left for recovery from the change."""


@dataclass(frozen=True)
class Branch:
    """A continuation at `ratio` times the batch: its global batch, rate, and smoothed loss (None: it died)."""

    ratio: int
    batch: int
    lr: float
    loss: float | None


def smoothed(losses: Sequence[tuple[int, float]], start: int, end: int) -> float | None:
    """Mean loss per sample over the last TAIL of (start, end], from windows as (samples at their end, mean loss).

    None if no window lies there.
    """
    cut = end - (end - start) * TAIL
    total = weight = 0.0
    before = start
    for samples, loss in losses:
        if samples > end:
            break
        if samples > cut:
            share = samples - max(before, cut)
            total, weight = total + share * loss, weight + share
        before = samples
    return total / weight if weight else None


def largest_safe(branches: Sequence[Branch], eps: float) -> Branch:
    """The largest ratio up to which every branch keeps within `eps` of all smaller ones.

    Raises ValueError without a base (ratio 1).
    """
    base = next((b for b in branches if b.ratio == 1), None)
    if base is None or base.loss is None:
        raise ValueError("the base branch has no loss to compare with")
    safe, least = base, base.loss
    for branch in sorted(branches, key=lambda b: b.ratio):
        if branch.loss is None or not branch.loss <= least + eps:
            break
        safe, least = branch, min(least, branch.loss)
    return safe


def rows(branches: Sequence[Branch], eps: float) -> list[list[str]]:
    """The table: each branch, its loss, and by how much it is above the lowest of the smaller batches."""
    out, least = [["ratio", "batch", "lr", "smoothed loss", "above smaller", ""]], None
    for b in sorted(branches, key=lambda b: b.ratio):
        start = [str(b.ratio), f"{b.batch:,}", f"{b.lr:.4g}"]
        if b.loss is None:
            out.append([*start, "-", "-", "died"])
            continue
        above = b.loss - (b.loss if least is None else least)
        out.append([*start, f"{b.loss:.4f}", f"{above:+.4f}", "safe" if above <= eps else "worse"])
        least = b.loss if least is None else min(least, b.loss)
    return out
