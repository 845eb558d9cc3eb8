"""Runs compared at equal samples: the first is the reference, the question is whether the others lost by their batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from harness.analysis.loss_verdict import Verdict, judge, mean_near
from harness.analysis.run_record import RunRecord


@dataclass(frozen=True)
class Row:
    """One run at `samples` seen, which all runs reached. `evals` are its last evaluations by then; None if it has none.

    `verdict` compares it with the first run; None for that one. `noise_scale` is the median at high rates.
    """

    name: str
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


@dataclass(frozen=True)
class Comparison:
    """All runs at `samples`. `measures` names the evaluations that any of them has."""

    samples: int
    measures: list[str]
    rows: list[Row]


def comparison(stories: Sequence[RunRecord]) -> Comparison | None:
    """The runs at the most samples that all of them saw; None for fewer than two runs, or where one has no window."""
    if len(stories) < 2 or not all(s.losses for s in stories):
        return None
    end = min(s.losses[-1][0] for s in stories)
    rows = [_row(s, stories[0], end) for s in stories]
    measures = list(dict.fromkeys(name for row in rows for name in row.evals))
    return Comparison(end, measures, rows)


def _row(s: RunRecord, reference: RunRecord, end: int) -> Row:
    evals = {}
    for name, told in s.evals.items():
        before = [value for samples, value in told if samples <= end]
        if before and not name.endswith("_gap"):
            evals[name] = before[-1]
    valid, theirs = s.evals.get("eval/loss", []), reference.evals.get("eval/loss", [])
    batch, rates = s.planned("global_batch"), [b.mean for b in s.curves.get("throughput/samples_per_s", []) if b.count]
    return Row(
        name=s.name,
        ratio=s.planned("ratio"),
        batch=batch,
        rule=str(s.plan.get("rule", "")),
        lr=s.planned("lr"),
        loss=mean_near(s.losses, end),
        evals=evals,
        steps=math.ceil(end / batch) if batch else None,
        rate=median(rates) if rates else None,
        noise_scale=s.noise_scale,
        verdict=None if s is reference else judge(s.losses, reference.losses, valid, theirs),
    )
