"""Does a run match its reference, so that the rule held? Its loss against that of the reference run, at equal samples.

By the validation loss where both runs have it: a training loss near 0 has large relative differences that mean nothing. A loss also
differs by chance: what it differs by from one evaluation (or window) to the next is its spread, and a difference that the spread
explains is no verdict. Runs of other seeds differ by more; `widebatch sweep --seeds` has them.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from harness.analysis.journal_lines import number

TOLERANCE_PCT = 2.0
"""In percent: a loss up to this far from the reference's matches it."""
SHARE = 0.1
"""Share of the samples, from the end, over which losses are compared."""
SPREAD_SHARE = 0.5
"""Share of the samples, from the end, over which the spread of losses is measured."""
FEWEST = 3
"""The fewest values from which a spread is measured."""
Losses = Sequence[tuple[int, float]]
"""(samples, mean loss), in order."""
NAMES = {"eval/loss": "validation loss", "train/loss": "training loss"}


@dataclass(frozen=True)
class Verdict:
    """Mean losses over the last samples that both runs saw, and what that says.

    `measure` names the loss. Two equal runs may differ by up to `band` by chance; None if too little was measured to know.
    """

    loss: float
    reference: float
    samples: int
    measure: str = "train/loss"
    band: float | None = None

    @property
    def worse_pct(self) -> float:
        """By how much the loss is above the reference's, in percent of its size; infinite above a reference of 0."""
        return self._pct(self.loss - self.reference)

    @property
    def answer(self) -> Literal["matches", "is better than", "diverges from", "cannot tell from"]:
        """Whether the loss is within the tolerance; if above, whether it exceeds it by more than chance explains."""
        if self.worse_pct <= TOLERANCE_PCT:
            return "is better than" if self.worse_pct < -TOLERANCE_PCT else "matches"
        if not math.isfinite(self.loss):
            return "diverges from"
        beyond = self.loss - self.reference - TOLERANCE_PCT / 100 * abs(self.reference)
        return "cannot tell from" if self.band is None or beyond <= self.band else "diverges from"

    @property
    def held(self) -> bool:
        """Whether the loss is no worse than the reference's."""
        return self.answer in ("matches", "is better than")

    @property
    def short(self) -> str:
        """The answer and the difference, for a table."""
        said = {"matches": "matches", "is better than": "better", "diverges from": "diverges", "cannot tell from": "cannot tell"}
        return f"{said[self.answer]} ({self._difference})"

    @property
    def _difference(self) -> str:
        """The difference as text: in percent, or as a factor where it is large."""
        pct = self.worse_pct
        return f"{pct:+.1f} %" if not 1000 < pct < math.inf else f"{self.loss / self.reference:.3g} times".replace("e+", "e")

    def __str__(self) -> str:
        chance = "unknown" if self.band is None else f"up to {self._pct(self.band):.1f} %"
        losses = f"{NAMES[self.measure]} {self.loss:.4f} against {self.reference:.4f} ({self._difference}; chance: {chance})"
        return f"{self.answer} the reference: {losses} at {self.samples:,} samples"

    def _pct(self, above: float) -> float:
        if self.reference == 0:
            return math.copysign(math.inf, above) if above else 0.0
        return 100 * above / abs(self.reference)


def verdict(mine: Iterable[dict[str, Any]], theirs: Iterable[dict[str, Any]]) -> Verdict | None:
    """Compare the windows and evaluations of two journals; None if they have no samples in common."""
    told = [{name: _told(lines, name) for name in NAMES} for lines in (list(mine), list(theirs))]
    return judge(told[0]["train/loss"], told[1]["train/loss"], told[0]["eval/loss"], told[1]["eval/loss"])


def judge(mine: Losses, theirs: Losses, mine_valid: Losses, theirs_valid: Losses) -> Verdict | None:
    """The verdict from training and validation losses."""
    end = min((told[-1][0] for told in (mine, theirs) if told), default=0)
    pairs = {"eval/loss": (mine_valid, theirs_valid), "train/loss": (mine, theirs)}
    for measure, (one, other) in pairs.items():
        loss, reference = mean_near(one, end), mean_near(other, end)
        if end and loss is not None and reference is not None:
            errors = [_standard_error(told, end) for told in (one, other)]
            known = [e for e in errors if e is not None]
            return Verdict(loss, reference, end, measure, 2 * math.hypot(*known) if len(known) == len(errors) else None)
    return None


def mean_near(told: Losses, end: int) -> float | None:
    """Mean loss of the windows in the last SHARE before `end`; of windows that a restart repeated, the later report."""
    found = _last(told, end, SHARE)
    return sum(found) / len(found) if found else None


def _standard_error(told: Losses, end: int) -> float | None:
    """Standard error of that mean, by the spread of differences between neighbouring values, which a falling trend hardly
    affects."""
    found = _last(told, end, SPREAD_SHARE)
    if len(found) < FEWEST or not all(map(math.isfinite, found)):
        return None
    square = sum((b - a) ** 2 for a, b in pairwise(found)) / (2 * (len(found) - 1))
    return math.sqrt(square / max(len(_last(told, end, SHARE)), 1))


def _last(told: Losses, end: int, share: float) -> list[float]:
    return list({samples: loss for samples, loss in told if (1 - share) * end < samples <= end}.values())


def _told(lines: Iterable[dict[str, Any]], name: str) -> Losses:
    return [(int(line["samples"]), number(line[name])) for line in lines if line.get(name) is not None]
