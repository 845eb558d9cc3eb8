"""Runs compared at equal samples: the first is the reference, the question is whether the others lost by their batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from harness.analysis.loss_verdict import Verdict, judge, mean_near
from harness.analysis.run_record import RunRecord


@dataclass(frozen=True)
class Row:
    """One run at `samples` seen. `evals` are its last evaluations by then; None if it has none.

    `died` is the code of what ended a run before that; empty for the others. `verdict` compares it with the first run; None for
    that one. `noise_scale` is the median at high rates.
    """

    name: str
    samples: int
    died: str
    ratio: float | None
    batch: float | None
    rule: str
    lr: float | None
    loss: float | None
    evals: dict[str, float]
    steps: int | None
    rate: float | None
    noise_scale: float | None
    verdict: Verdict | None

    @property
    def against(self) -> str:
        """How it compares with the first run, for a table."""
        if self.died:
            return f"died at {self.samples:,} samples"
        return "cannot tell" if self.verdict is None else self.verdict.short


@dataclass(frozen=True)
class Comparison:
    """All runs at `samples`; one that died before, where it died. `measures` names the evaluations that any of them has."""

    samples: int
    measures: list[str]
    rows: list[Row]


def comparison(stories: Sequence[RunRecord]) -> Comparison | None:
    """The runs at the most samples that all of them saw, but for those that died; None for fewer than two, or one without windows.

    The first is the reference, dead or alive.
    """
    if len(stories) < 2 or not all(s.losses for s in stories):
        return None
    end = min(s.losses[-1][0] for s in stories if not s.died or s is stories[0])
    rows = [_row(s, stories[0], min(end, s.losses[-1][0])) for s in stories]
    measures = list(dict.fromkeys(name for row in rows for name in row.evals))
    return Comparison(end, measures, rows)


def _row(s: RunRecord, reference: RunRecord, end: int) -> Row:
    evals = {}
    for name, told in s.evals.items():
        before = [value for samples, value in told if samples <= end]
        if before and not name.endswith("_gap"):
            evals[name] = before[-1]
    losses = (s.losses, reference.losses, s.evals.get("eval/loss", []), reference.evals.get("eval/loss", []))
    batch, rates = s.planned("global_batch"), [b.mean for b in s.curves.get("throughput/samples_per_s", []) if b.count]
    return Row(
        name=s.name,
        samples=end,
        died=s.died if end == s.losses[-1][0] else "",
        ratio=s.planned("ratio"),
        batch=batch,
        rule=str(s.plan.get("rule", "")),
        lr=s.planned("lr"),
        loss=mean_near(s.losses, end),
        evals=evals,
        steps=math.ceil(end / batch) if batch else None,
        rate=median(rates) if rates else None,
        noise_scale=s.noise_scale,
        verdict=None if s is reference else judge(*([row for row in told if row[0] <= end] for told in losses)),
    )
