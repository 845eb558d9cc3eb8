"""The branch test: which continuations of a run, at larger batches, lose nothing (Merrill et al. 2025, 2505.23971)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

EPS = 0.01
"""How much higher the smoothed loss of a branch may be, in the loss's own unit."""
TAIL = 0.5
"""Share of a branch, from its end, over which its loss is averaged: the first half is to recover in."""


@dataclass(frozen=True)
class Branch:
    """A continuation at `ratio` times the batch: its global batch, rate, and smoothed loss (None: it died)."""

    ratio: int
    batch: int
    lr: float
    loss: float | None


def smoothed(losses: Sequence[tuple[int, float]], start: int, end: int) -> float | None:
    """Mean loss per sample over the last TAIL of (start, end], from windows as (samples at their end, mean loss).

    None where no window lies there.
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
    """The largest ratio up to which every branch keeps within `eps` of the base (ratio 1). Raises ValueError without a base."""
    base = next((b for b in branches if b.ratio == 1), None)
    if base is None or base.loss is None:
        raise ValueError("the base branch has no loss to compare with")
    safe = base
    for branch in sorted(branches, key=lambda b: b.ratio):
        if branch.loss is None or not branch.loss <= base.loss + eps:
            break
        safe = branch
    return safe


def rows(branches: Sequence[Branch], eps: float) -> list[list[str]]:
    """The table: each branch, its loss, and by how much it is above the base's."""
    losses: Mapping[int, float | None] = {b.ratio: b.loss for b in branches}
    base = losses.get(1)
    out = [["ratio", "batch", "lr", "smoothed loss", "above the base", ""]]
    for b in sorted(branches, key=lambda b: b.ratio):
        if b.loss is None or base is None:
            out.append([str(b.ratio), f"{b.batch:,}", f"{b.lr:.4g}", "-", "-", "died"])
            continue
        above = b.loss - base
        out.append(
            [str(b.ratio), f"{b.batch:,}", f"{b.lr:.4g}", f"{b.loss:.4f}", f"{above:+.4f}", "safe" if above <= eps else "worse"]
        )
    return out
