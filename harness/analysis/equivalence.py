"""Do N ranks compute what one process computes? Two traces of the same steps, compared; what differs first is named.

A trace is what a run was seen to do: digests of the samples it trained on, losses, counts, rates, norms. Where two differ, the
known ways of going wrong are tried: the one that gives the number that was found is the likely cause.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class StepTrace:
    """One optimizer step. `rows` maps the digest of each sample to a name for it, and how often it came; `used` are the rates that
    the optimizer had when it stepped; `layers` gradient norms by parameter, empty if the backend keeps them to itself.

    `passes` are (loss sum, count) of each forward pass, in the plan's order; known of the one process alone.
    """

    rows: Counter[str]
    samples: int
    loss: float
    items: float
    grad_norm: float
    used: tuple[float, ...]
    layers: Mapping[str, float] = field(default_factory=dict)
    passes: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Trace:
    """A run. `sketches` are of the weights it ended with, by name: their squared norm and projections of them."""

    steps: Sequence[StepTrace]
    sketches: Mapping[str, Sequence[float]]
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Limits:
    """The largest relative difference of numbers that are equal up to rounding."""

    loss: float
    norm: float
    items: float
    """For counts that are sums of weights. Counts of whole items are compared exactly."""


LIMITS = {
    "fp64": Limits(1e-9, 1e-8, 1e-12),
    "fp32": Limits(1e-4, 1e-3, 1e-5),
    "bf16": Limits(3e-2, 2e-1, 1e-2),
    "fp16": Limits(3e-2, 2e-1, 2e-3),
}
TF32 = Limits(1e-2, 1e-1, 1e-5)
EXACT = 2.0**24
"""Whole numbers up to here are exact in float32, in which counts travel between ranks."""


@dataclass(frozen=True)
class Finding:
    """The result of one comparison. `verdict`: same, differs or note; `text` is for people."""

    what: str
    verdict: str
    text: str


def judge(ranks: Trace, one: Trace, planned: Sequence[float], world: int, limits: Limits) -> list[Finding]:
    """The findings of comparing `ranks` with `one`, except those about samples. `planned` is the plan's rate of each step."""
    found = [
        _rates(ranks, planned, world),
        _items(ranks, one, limits),
        _losses(ranks, one, world, limits),
        _norms(ranks, one, limits),
    ]
    if any(s.layers for s in ranks.steps):
        found.append(_layers(ranks, one, limits))
    found.append(_weights(ranks, one, limits))
    if one.metrics:
        found.append(_metrics(ranks, one, limits))
    return found


def apart(a: float, b: float) -> float:
    """Relative difference; infinite if one of two is no number."""
    if a == b or (a != a and b != b):
        return 0.0
    difference = abs(a - b) / max(abs(a), abs(b))
    return difference if difference == difference else float("inf")


def same_count(a: float, b: float, limits: Limits) -> bool:
    """Whether two counts of items are the same: exactly where both are whole, else up to rounding."""
    whole = a.is_integer() and b.is_integer() and max(abs(a), abs(b)) <= EXACT
    return a == b if whole else apart(a, b) <= limits.items


def pair(a: float, b: float) -> tuple[str, str]:
    """Two numbers as text, with six digits or as many as it takes for them to differ."""
    digits = next((n for n in range(6, 17) if f"{a:.{n}g}" != f"{b:.{n}g}"), 6 if a == b else 17)
    return f"{a:.{digits}g}", f"{b:.{digits}g}"


def unseeded(first: Trace, second: Trace) -> Finding | None:
    """A finding where one process that reads the same samples twice gets different ones, as ranks then do too; else None."""
    for number, (a, b) in enumerate(zip(first.steps, second.steps, strict=True)):
        if a.rows != b.rows:
            text = f"step {number}: {(a.rows - b.rows).total()} of {a.samples} samples, read twice by one process, are not the same"
            text += ": the data or collate draw from a random generator of their own, which run.seed does not reach"
            return Finding(
                "samples", "differs", f"{text}. Draw from torch, numpy.random or random, which are seeded for each sample"
            )
    return None


def samples(ranks: Trace, one: Trace, names: Mapping[str, int]) -> Finding:
    """Whether the ranks got the samples of the run's order; `names` maps each digest to its sample."""
    seen: Counter[str] = Counter()
    for number, (here, there) in enumerate(zip(ranks.steps, one.steps, strict=True)):
        seen += here.rows
        if here.rows != there.rows:
            missing, extra = there.rows - here.rows, here.rows - there.rows
            again = sum(1 for digest in extra if seen[digest] > 1)
            text = f"step {number}: {missing.total()} of {there.samples} samples are not those of the run's order"
            lost = sorted(names[d] for d in missing if d in names)[:5]
            text += f" (missing: {', '.join(map(str, lost))}, ...)" if lost else ""
            text += f"; {again} came before" if again else ""
            return Finding("samples", "differs", f"{text}. Does each rank shuffle, or take its share, on its own?")
    total = sum(s.samples for s in one.steps)
    return Finding("samples", "same", f"{total:,} in {len(one.steps)} steps, over all ranks: exactly those of the run's order")


def _rates(ranks: Trace, planned: Sequence[float], world: int) -> Finding:
    for number, (step, rate) in enumerate(zip(ranks.steps, planned, strict=True)):
        if step.items == 0:  # it moves nothing, whether or not an optimizer's kernel was called
            continue
        wrong = next((u for u in step.used if apart(u, rate) > 1e-9), None)
        if wrong is None and step.used:
            continue
        if wrong is None:
            return Finding("lr", "differs", f"step {number}: the optimizer did not step")
        had, says = pair(wrong, rate)
        text = f"step {number}: the optimizer had {had}, the plan says {says}"
        at = number * world
        if at < len(planned) and at and apart(wrong, planned[at]) < 1e-9:
            text += f", and {wrong:g} only for step {at}: the scheduler is stepped once per process"
        return Finding("lr", "differs", text)
    return Finding("lr", "same", "the rate that the optimizer had at every step is the plan's")


def _items(ranks: Trace, one: Trace, limits: Limits) -> Finding:
    for number, (here, there) in enumerate(zip(ranks.steps, one.steps, strict=True)):
        if not same_count(here.items, there.items, limits):
            counted, alone = pair(here.items, there.items)
            text = f"step {number}: the ranks counted {counted}, one process {alone}"
            if here.items == len(there.passes):
                text += (
                    f": one for each of {len(there.passes)} passes, so means are averaged where sums should be divided by the count"
                )
            return Finding("items", "differs", text)
    total = sum((s.items for s in one.steps), 0.0)
    return Finding(
        "items", "same", f"{total:,.0f} counted by the loss" if total.is_integer() else f"{total:,.6g} counted by the loss"
    )


def _losses(ranks: Trace, one: Trace, world: int, limits: Limits) -> Finding:
    worst = 0.0
    for number, (here, there) in enumerate(zip(ranks.steps, one.steps, strict=True)):
        gap = apart(here.loss, there.loss)
        worst = max(worst, gap)
        if gap > limits.loss:
            ours, alone = pair(here.loss, there.loss)
            text = f"step {number}: {ours} on the ranks, {alone} in one process"
            text += f" (relative difference {gap:.1e}, limit {limits.loss:g})"
            means = _mean_of_means(there.passes, world)
            if means is not None and apart(here.loss, means) < gap / 10:
                text += f"; {means:.6g} is the mean of the ranks' own means, which have unequal counts: divide the sum by the count"
            elif number:
                text += "; the step before had the same loss, so its weight update differed: see the gradients"
            return Finding("loss", "differs", text)
    return Finding("loss", "same", f"relative difference at most {worst:.1e} (limit {limits.loss:g})")


def _mean_of_means(passes: Sequence[tuple[float, float]], world: int) -> float | None:
    """The loss if each rank took the mean of its own passes, and the ranks' means were averaged."""
    shares = [passes[rank::world] for rank in range(world)]
    counts = [sum(count for _, count in share) for share in shares]
    if not all(counts):
        return None
    return sum(sum(total for total, _ in share) / count for share, count in zip(shares, counts, strict=True)) / world


def _norms(ranks: Trace, one: Trace, limits: Limits) -> Finding:
    worst, full = 0.0, max(s.samples for s in one.steps)
    for number, (here, there) in enumerate(zip(ranks.steps, one.steps, strict=True)):
        gap = apart(here.grad_norm, there.grad_norm)
        worst = max(worst, gap)
        if gap > limits.norm:
            ours, alone = pair(here.grad_norm, there.grad_norm)
            text = f"step {number}: norm {ours} on the ranks, {alone} in one process"
            if there.samples < full and apart(here.grad_norm * full, there.grad_norm * there.samples) < limits.norm:
                text += (
                    f"; {there.samples}/{full} of it: a short step of {there.samples} samples was divided by a full step's {full}"
                )
            return Finding("gradients", "differs", text)
    return Finding("gradients", "same", f"relative difference of norms at most {worst:.1e} (limit {limits.norm:g})")


def _layers(ranks: Trace, one: Trace, limits: Limits) -> Finding:
    worst = 0.0
    for number, (here, there) in enumerate(zip(ranks.steps, one.steps, strict=True)):
        least = limits.norm * there.grad_norm * 1e-3
        gaps = {
            n: apart(v, there.layers[n]) for n, v in here.layers.items() if n in there.layers and max(v, there.layers[n]) > least
        }
        worst = max([worst, *gaps.values()])
        name = max(gaps, key=lambda n: gaps[n], default=None)
        if name is not None and gaps[name] > limits.norm:
            ours, alone = pair(here.layers[name], there.layers[name])
            text = f"step {number}: the gradient of {name} has norm {ours} on the ranks, {alone} in one process"
            return Finding("gradient of each weight", "differs", text)
    return Finding("gradient of each weight", "same", f"relative difference of norms at most {worst:.1e}")


def _weights(ranks: Trace, one: Trace, limits: Limits) -> Finding:
    gaps = {}
    for name, sketch in one.sketches.items():
        here = ranks.sketches.get(name)
        if here is None:
            return Finding("weights", "differs", f"the ranks have no {name}")
        size = max(sketch[0], here[0]) ** 0.5
        gaps[name] = max(abs(a - b) for a, b in zip(here[1:], sketch[1:], strict=True)) / size if size else 0.0
    name = max(gaps, key=lambda n: gaps[n])
    text = f"after {len(one.steps)} steps they differ by at most {gaps[name]:.1e} of their norm (limit {limits.norm:g}), in {name}"
    return Finding("weights", "differs" if gaps[name] > limits.norm else "same", text)


def _metrics(ranks: Trace, one: Trace, limits: Limits) -> Finding:
    gaps = {name: apart(ranks.metrics.get(name, float("nan")), value) for name, value in one.metrics.items()}
    name = max(gaps, key=lambda n: gaps[n])
    ours, alone = pair(ranks.metrics.get(name, float("nan")), one.metrics[name])
    text = f"{name}: {ours} on the ranks, {alone} in one process"
    return Finding("validation", "differs" if gaps[name] > limits.loss * 10 else "same", text)


def repeats(first: Trace, second: Trace) -> Finding:
    """Whether one process gives the same numbers twice."""
    for number, (a, b) in enumerate(zip(first.steps, second.steps, strict=True)):
        gap = max(apart(a.loss, b.loss), apart(a.grad_norm, b.grad_norm))
        if gap:
            text = f"two runs in one process differ by {gap:.1e} at step {number}"
            return Finding("repeat", "note", f"{text}; some operation is not deterministic, or draws unseeded numbers")
    return Finding("repeat", "same", "two runs in one process agree bit for bit")


@dataclass(frozen=True)
class Split:
    """Step 0 of one process at two micro-batches, to see what depends on the micro-batch: in training mode, in evaluation mode (in
    which neither BatchNorm nor dropout act), and with other random numbers. `drawn`: the random numbers change the batches
    themselves."""

    micro: int
    other: int
    trained: tuple[StepTrace, StepTrace]
    evaluated: tuple[float, float]
    reseeded: float
    drawn: bool
    batch_norm: bool


def depends_on_micro(split: Split, limits: Limits) -> Finding:
    """Whether the loss is the same at two micro-batches; if not, the likely cause."""
    a, b = split.trained
    if split.drawn:
        text = "collate draws random numbers for each pass, so losses at two micro-batches cannot be compared. This is no error"
        return Finding("micro-batch", "note", text)
    cut = f"at micro-batch {split.micro} and {split.other}"
    if not same_count(a.items, b.items, limits):
        text = f"{cut} the loss counts {' and '.join(pair(a.items, b.items))} items"
        return Finding("micro-batch", "differs", f"{text}: does loss() return a mean? It must return a sum and its count")
    gap = max(apart(a.loss, b.loss), apart(a.grad_norm, b.grad_norm) / 10)
    if gap <= limits.loss:
        return Finding("micro-batch", "same", f"{cut} the loss differs by {apart(a.loss, b.loss):.1e}")
    random = split.reseeded != a.loss
    calm = apart(*split.evaluated) <= limits.loss
    losses = f"{cut} the loss is {' and '.join(pair(a.loss, b.loss))}"
    if calm and split.batch_norm and not random:
        text = f"{losses}: BatchNorm normalizes over one pass on one rank, so micro_batch changes what is trained"
        return Finding(
            "micro-batch", "differs", f"{text}. Keep micro_batch, or give BatchNorm a fixed n (harness.recipes.resnet.use_ghosts)"
        )
    if calm and split.batch_norm:
        return Finding("micro-batch", "differs", f"{losses}: BatchNorm and random operations depend on the pass")
    if calm and random:
        return Finding(
            "micro-batch", "note", f"{losses}: dropout and other random operations draw again in each pass. This is no error"
        )
    return Finding("micro-batch", "differs", f"{losses}: samples of one pass influence each other, in evaluation mode too")
