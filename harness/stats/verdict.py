"""Did the rule hold? A run's loss against that of a reference run, at equal samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

TOLERANCE_PCT = 2.0
"""A loss within this share of the reference's held."""
SHARE = 0.1
"""Of the samples, counted from the end, over which losses are compared."""


@dataclass(frozen=True)
class Verdict:
    """Mean training losses over the last samples that both runs saw, and what that says."""

    loss: float
    reference: float
    samples: int

    @property
    def worse_pct(self) -> float:
        """By how much the loss is above the reference's."""
        return 100 * (self.loss / self.reference - 1)

    def __str__(self) -> str:
        how = "held" if self.worse_pct <= TOLERANCE_PCT else "did not hold"
        losses = f"loss {self.loss:.4f} against {self.reference:.4f} ({self.worse_pct:+.1f} %)"
        return f"the rule {how}: {losses} at {self.samples:,} samples"


def verdict(mine: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> Verdict | None:
    """Compare the windows of two journals; None where they have no samples in common."""
    end = min((w[-1]["samples"] for w in (mine, theirs) if w), default=0)
    losses = [_mean(windows, end) for windows in (mine, theirs)]
    if not end or losses[0] is None or losses[1] is None:
        return None
    return Verdict(losses[0], losses[1], end)


def _mean(windows: Sequence[dict[str, Any]], end: int) -> float | None:
    """Mean loss of the windows in the last SHARE before `end`, told last where a restart told them twice."""
    latest = {w["samples"]: w["train/loss"] for w in windows if (1 - SHARE) * end < w["samples"] <= end}
    found = [float(loss) for loss in latest.values()]
    return sum(found) / len(found) if found else None
