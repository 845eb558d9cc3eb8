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

    @property
    def held(self) -> bool:
        """Whether that is little enough."""
        return self.worse_pct <= TOLERANCE_PCT

    def __str__(self) -> str:
        how = "held" if self.held else "did not hold"
        losses = f"loss {self.loss:.4f} against {self.reference:.4f} ({self.worse_pct:+.1f} %)"
        return f"the rule {how}: {losses} at {self.samples:,} samples"


def verdict(mine: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> Verdict | None:
    """Compare the windows of two journals; None where they have no samples in common."""
    told = [[(int(w["samples"]), float(w["train/loss"])) for w in windows] for windows in (mine, theirs)]
    return compare(*told)


def compare(mine: Sequence[tuple[int, float]], theirs: Sequence[tuple[int, float]]) -> Verdict | None:
    """The same of (samples, mean loss) of windows."""
    end = min((told[-1][0] for told in (mine, theirs) if told), default=0)
    losses = [mean_near(told, end) for told in (mine, theirs)]
    if not end or losses[0] is None or losses[1] is None:
        return None
    return Verdict(losses[0], losses[1], end)


def mean_near(told: Sequence[tuple[int, float]], end: int) -> float | None:
    """Mean loss of the windows in the last SHARE before `end`, told last where a restart told them twice."""
    latest = {samples: loss for samples, loss in told if (1 - SHARE) * end < samples <= end}
    return sum(latest.values()) / len(latest) if latest else None
