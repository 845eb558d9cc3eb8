"""What the ranks of anybody's training script did, compared with what data-parallel training should do. Pure."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.analysis.equivalence import Finding

CLOSE, FACTOR = 1e-3, 1e-2
"""Relative tolerances: for numbers of two ranks that should be equal, and for a factor that should be a known one."""


@dataclass(frozen=True)
class PassSeen:
    """One backward of one rank. `factor`: the scalar it began at over the mean loss that a loss function of torch's gave last, and
    `count` the items of that mean; None if no such function was called. `rows`: digests of the samples that the model got."""

    factor: float | None
    count: int
    rows: tuple[str, ...]


@dataclass(frozen=True)
class StepSeen:
    """One optimizer step of one rank. Sketches are dot products with fixed random vectors.

    `buffers`: a digest of the model's, as its first pass saw them. `gradient`: what the optimizer got; `own`: the sum of what this
    rank's passes gave, before anything was reduced or clipped.
    """

    epoch: int
    rates: tuple[float, ...]
    gradient: tuple[float, ...]
    own: tuple[float, ...]
    weights: tuple[float, ...]
    buffers: str
    random: str
    dropout: bool
    passes: tuple[PassSeen, ...]


Trace = Sequence[StepSeen]
_UNSEEN = "the gradients of single ranks are not seen, as FSDP keeps them: whether they are averaged is not known"


def judge_script(ranks: Sequence[Trace], alone: Trace) -> list[Finding]:
    """What was found, differences first, causes before their effects. `alone`: the same script in one process."""
    checks = {
        "weights": _weights(ranks),
        "gradients": _gradients(ranks),
        "loss": _loss(ranks),
        "items": _items(ranks),
        "rate": _rate(ranks),
        "samples": _samples(ranks),
        "buffers": _buffers(ranks),
        "dropout": _dropout(ranks),
    }
    found = [Finding(what, "differs" if text else "same", text or _SAME[what]) for what, text in checks.items()]
    if not _owned(ranks):
        found = [Finding("gradients", "note", _UNSEEN) if one.what == "gradients" else one for one in found]
    schedule = _schedule(ranks, alone)
    return [*found, Finding("schedule", "note", schedule)] if schedule else found


_SAME = {
    "weights": "all ranks begin from the same weights",
    "gradients": "the optimizer gets the mean of the ranks' gradients",
    "loss": "the passes of a step count as one mean",
    "items": "each item counts alike in all passes and on all ranks",
    "rate": "all ranks step at the same rate",
    "samples": "no sample was read twice",
    "buffers": "the ranks' buffers are the same",
    "dropout": "the ranks draw random numbers of their own",
}


def _steps(ranks: Sequence[Trace]) -> Iterator[tuple[int, list[StepSeen]]]:
    """(number, that step on every rank), the first being 1."""
    yield from enumerate(map(list, zip(*ranks, strict=False)), 1)


def _differ(a: Sequence[float], b: Sequence[float]) -> bool:
    size = max(map(abs, (*a, *b)), default=0.0)
    return any(abs(x - y) > CLOSE * size for x, y in zip(a, b, strict=True))


def _weights(ranks: Sequence[Trace]) -> str:
    first = [trace[0] for trace in ranks if trace]
    if any(_differ(one.weights, first[0].weights) for one in first):
        return "the ranks begin from different weights: seed them alike, or wrap the model in DDP, which sends rank 0's"
    return ""


def _owned(ranks: Sequence[Trace]) -> bool:
    """Whether the gradients of each rank's own passes were seen."""
    return any(any(one.own) for _, step in _steps(ranks) for one in step)


def _gradients(ranks: Sequence[Trace]) -> str:
    world, factors = len(ranks), list[float]()
    for number, step in _steps(ranks):
        if any(_differ(one.gradient, step[0].gradient) for one in step):
            alone = all(not _differ(one.gradient, one.own) for one in step)
            why = "each rank steps with its own gradients, not averaged" if alone else "some passes are not averaged over ranks"
            return f"at step {number} the ranks' optimizers get different gradients; {why}"
        factor = _multiple(step)
        if factor is None:
            return f"at step {number} the optimizer's gradient is not a multiple of the mean of the ranks' gradients"
        factors.append(factor)
    passes = len(ranks[0][0].passes)
    for value, text in (
        (float(world), f"gradients are added up over the {world} ranks, not averaged: they are {world} times too large"),
        (1 / world, f"gradients are divided by the {world} ranks twice"),
        (1 / passes, f"gradients are divided by the {passes} passes after the backward passes"),
        (float(passes), f"gradients are multiplied by the {passes} passes after the backward passes"),
    ):
        if _all_are(factors, value):
            return text
    return ""


def _multiple(step: Sequence[StepSeen]) -> float | None:
    """The optimizer's gradient divided by the mean of the ranks' own; None if it is no multiple of it."""
    mean = [sum(parts) / len(step) for parts in zip(*(one.own for one in step), strict=True)]
    size = sum(m * m for m in mean)
    factor = sum(g * m for g, m in zip(step[0].gradient, mean, strict=True)) / size if size else 1.0
    rest = math.sqrt(sum((g - factor * m) ** 2 for g, m in zip(step[0].gradient, mean, strict=True)))
    return None if rest > FACTOR * abs(factor) * math.sqrt(size) else factor


def _all_are(factors: Sequence[float], value: float) -> bool:
    """Whether there are factors, and all of them are `value`, which is not 1."""
    return value != 1.0 and bool(factors) and all(abs(f / value - 1) < FACTOR for f in factors)


def _total(step: Sequence[StepSeen]) -> float | None:
    """The total weight of a step's passes, averaged over ranks; 1 where the passes form one mean."""
    found = [one.factor for rank in step for one in rank.passes]
    return None if None in found else sum(f for f in found if f is not None) / len(step)


def _loss(ranks: Sequence[Trace]) -> str:
    totals = [_total(step) for _, step in _steps(ranks)]
    passes, world = len(ranks[0][0].passes), len(ranks)
    known = [total for total in totals if total is not None]
    for value, text in (
        (float(passes), f"the loss is not divided by the {passes} passes of a step: gradients are {passes} times too large"),
        (1 / passes, f"the loss is divided by the {passes} passes of a step twice: gradients are {passes} times too small"),
        (1 / world, f"the loss is divided by the {world} ranks, and the gradients again: they are {world} times too small"),
        (float(world), f"the loss is multiplied by the {world} ranks: gradients are {world} times too large"),
        (
            float(passes * world),
            f"the loss is not divided by the {passes} passes of a step, and multiplied by the {world} ranks: gradients are "
            f"{passes * world} times too large",
        ),
    ):
        if _all_are(known, value):
            return text
    return ""


def _items(ranks: Sequence[Trace]) -> str:
    for number, step in _steps(ranks):
        seen = [one for rank in step for one in rank.passes if one.factor is not None and one.count]
        weights = [(one.factor or 0.0) / one.count for one in seen]
        if weights and min(weights) > 0 and max(weights) / min(weights) > 1 + FACTOR:
            counts = [one.count for one in seen]
            worst = max(weights) / min(weights)
            return (
                f"at step {number} passes of {min(counts)} to {max(counts)} items are averaged as equals: an item of one counts "
                f"{worst:.2f} times one of another; divide sums by the step's count over all ranks"
            )
    return ""


def _rate(ranks: Sequence[Trace]) -> str:
    for number, step in _steps(ranks):
        if any(_differ(one.rates, step[0].rates) for one in step):
            return f"at step {number} the ranks' rates differ"
    return ""


def _schedule(ranks: Sequence[Trace], alone: Trace) -> str:
    """How the rates depend on the number of ranks; only the script's author knows which dependence is meant."""
    world, rates, one = len(ranks), [step.rates for step in ranks[0]], [step.rates for step in alone]
    count = min(len(rates), (len(one) - 1) // world + 1)
    if count < 2 or not any(_differ(a, b) for a, b in zip(rates, one, strict=False)):
        return ""
    if all(not _differ(rates[n], one[n * world]) for n in range(count)):
        return f"the scheduler steps {world} times a step, once for each process: its length must be in steps of one process"
    return "the rates are not those of one process: they depend on the number of ranks"


def _samples(ranks: Sequence[Trace]) -> str:
    for number, step in _steps(ranks):
        rows = [{row for one in rank.passes for row in one.rows} for rank in step]
        if any(rows) and all(one == rows[0] for one in rows):
            return f"at step {number} all ranks read the same samples: the loader is not split over ranks"
    seen: dict[tuple[int, str], int] = {}
    for rank, trace in enumerate(ranks):
        for taken in trace:
            for row in {row for one in taken.passes for row in one.rows}:
                if seen.setdefault((taken.epoch, row), rank) != rank:
                    return "several ranks read the same samples within an epoch: each shuffles on its own"
    return ""


def _buffers(ranks: Sequence[Trace]) -> str:
    for number, step in _steps(ranks):
        if len({one.buffers for one in step}) > 1:
            return f"at step {number} the ranks' buffers differ, as running statistics of BatchNorm do: broadcast or average them"
    return ""


def _dropout(ranks: Sequence[Trace]) -> str:
    for number, step in _steps(ranks):
        if all(one.dropout for one in step) and len({one.random for one in step}) == 1:
            return f"at step {number} all ranks drop the same units: their random generators are seeded alike"
    return ""
