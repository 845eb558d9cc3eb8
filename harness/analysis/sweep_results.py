"""A sweep's results: what each rule gives at each batch, over seeds, and what that says as text."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any

from harness.analysis.critical_batch import FEWER, Fit, Regimes, fit, regimes
from harness.analysis.run_outcome import Outcome
from harness.analysis.target_metric import Target, held_within


@dataclass(frozen=True)
class Row:
    """One trial: `value` is the metric at its end, `to_steps` and `to_samples` where it first met the target (None: never)."""

    rule: str
    batch: int
    seed: int
    reason: str
    steps: int
    samples: int
    value: float | None
    to_steps: int | None
    to_samples: int | None
    noise_scale: float | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def row(rule: str, batch: int, seed: int, o: Outcome, target: Target) -> Row:
    """What the sweep keeps of a trial. The noise scale is the median of its windows, up to the target where it was met."""
    reached = o.reached(target.metric, target.value, higher=target.higher) if target.value is not None else None
    return Row(
        rule=rule,
        batch=batch,
        seed=seed,
        reason=o.reason,
        steps=o.steps,
        samples=o.samples,
        value=o.last(target.metric),
        to_steps=reached.step if reached else None,
        to_samples=reached.samples if reached else None,
        noise_scale=o.noise_scale(reached.samples if reached else None),
        seconds=o.trained_s,
    )


@dataclass(frozen=True)
class Cell:
    """All seeds of one rule at one batch."""

    rows: tuple[Row, ...]

    @property
    def values(self) -> list[float]:
        """The metric of the runs that came to their end."""
        return [r.value for r in self.rows if r.value is not None]

    @property
    def lengths(self) -> list[int]:
        """The samples that the completed runs took."""
        return [r.samples for r in self.rows if r.value is not None]

    @property
    def died(self) -> int:
        """How many runs the guard stopped, or ended with a metric that is not finite."""
        return len(self.rows) - len(self.values)

    @property
    def steps(self) -> float | None:
        """Mean steps to the target; None unless every seed met it."""
        found = [r.to_steps for r in self.rows if r.to_steps is not None]
        return mean(found) if len(found) == len(self.rows) and found else None

    @property
    def samples(self) -> float | None:
        """Mean samples to the target; None unless every seed met it."""
        found = [r.to_samples for r in self.rows if r.to_samples is not None]
        return mean(found) if len(found) == len(self.rows) and found else None

    def __str__(self) -> str:
        """Mean and standard deviation of the metric, and how many died."""
        if not self.values:
            return "died"
        spread = f" ± {stdev(self.values):.2g}" if len(self.values) > 1 else ""
        dead = f" ({self.died} died)" if self.died else ""
        return f"{mean(self.values):.4g}{spread}{dead}"


@dataclass(frozen=True)
class Results:
    """All trials of a sweep, and how they are judged."""

    rows: tuple[Row, ...]
    reference: int
    target: Target

    @property
    def rules(self) -> list[str]:
        """The rules, in the order of the sweep."""
        return list(dict.fromkeys(r.rule for r in self.rows))

    @property
    def batches(self) -> list[int]:
        """The batches, from small to large."""
        return sorted({r.batch for r in self.rows})

    def cell(self, rule: str, batch: int) -> Cell:
        """The trials of a rule at a batch."""
        return Cell(tuple(r for r in self.rows if r.rule == rule and r.batch == batch))

    def base(self) -> Cell:
        """The batch that others are compared with: the reference batch, or the smallest where the sweep leaves it out."""
        batch = self.reference if self.reference in self.batches else self.batches[0]
        return max((self.cell(rule, batch) for rule in self.rules), key=lambda c: len(c.values))

    def best(self) -> dict[int, tuple[str, Cell]]:
        """By batch, the rule with the fewest steps to the target, of those whose every seed met it."""
        found = {}
        for batch in self.batches:
            cells = [(rule, self.cell(rule, batch)) for rule in self.rules]
            met = [(cell.steps, rule, cell) for rule, cell in cells if cell.steps is not None]
            if met:
                _, rule, cell = min(met, key=lambda m: m[0])
                found[batch] = (rule, cell)
        return found

    def fit(self, seed: int | None = None) -> Fit | None:
        """The curve of steps to the target through the best rule of each batch; of one seed alone, or of all."""
        points = [
            (batch, float(r.to_steps))
            for batch, (_, cell) in self.best().items()
            for r in cell.rows
            if r.to_steps is not None and seed in (None, r.seed)
        ]
        return fit(points)

    def regimes(self) -> Regimes | None:
        """How far scaling goes, by steps to the target; None without a target, or where none or less than a doubling met it."""
        steps = {batch: cell.steps for batch, (_, cell) in self.best().items() if cell.steps is not None}
        return regimes(steps) if steps else None

    def noise_scale(self) -> tuple[float, int] | None:
        """(median noise scale, its batch) as measured at the batch nearest to it."""
        cells = {b: [r.noise_scale for r in self.rows if r.batch == b and r.noise_scale] for b in self.batches}
        means = {b: sorted(found)[len(found) // 2] for b, found in cells.items() if found}
        if not means:
            return None
        batch = min(means, key=lambda b: abs(math.log(means[b] / b)))
        return means[batch], batch


def largest_held(results: Results, rule: str) -> int | None:
    """The largest batch up to which the rule is as good as the base at every batch of the sweep; None: at none."""
    base, held = results.base(), None
    for batch in results.batches:
        cell = results.cell(rule, batch)
        if not cell.rows:
            continue
        if cell.died or not held_within(cell.values, base.values, results.target):
            break
        held = batch
    return held


def verdict(results: Results) -> list[str]:
    """The sweep as text, a line each."""
    lines = [_rule_line(results, rule) for rule in results.rules]
    return lines + (_scaling_lines(results) if results.target.value is not None else [])


def _rule_line(results: Results, rule: str) -> str:
    base, target = results.base(), results.target
    if not base.values:
        return f"{rule}: the reference itself died; nothing to compare with"
    held = largest_held(results, rule)
    tested = [b for b in results.batches if results.cell(rule, b).rows]
    start = f"{rule}: holds up to batch {held:,}" if held else f"{rule}: holds at no batch of the sweep"
    if held == tested[-1]:
        start += ", the largest tried"
    beyond = [b for b in tested if held is None or b > held]
    told = []
    for batch in beyond:
        cell = results.cell(rule, batch)
        if not cell.values:
            told.append(f"at {batch:,}: {'all' if len(cell.rows) > 1 else 'it'} died")
        else:
            apart = mean(cell.values) - mean(base.values)
            points = " points" if target.metric.endswith("_pct") else ""
            dead = f", {cell.died} of {len(cell.rows)} died" if cell.died else ""
            told.append(f"at {batch:,}: {abs(apart):.3g}{points} {'above' if apart > 0 else 'below'} the reference{dead}")
    return "; ".join([start, *told])


def _scaling_lines(results: Results) -> list[str]:
    best = results.best()
    if not best:
        return [f"no batch met {results.target} with every seed"]
    missed = [b for b in results.batches if b not in best]
    lines = _regime_lines(results.regimes(), results.target)
    if missed:
        lines.append(f"never met with every seed: batch {', '.join(f'{b:,}' for b in missed)}")
    curve, noise = results.fit(), results.noise_scale()
    if curve is None:
        return [*lines, "critical batch: not fitted, the batches that met the target show one side of the curve only"]
    seeds = [f for f in (results.fit(seed) for seed in sorted({r.seed for r in results.rows})) if f is not None]
    spread = sorted(f.critical_batch for f in seeds)
    text = f"critical batch by the fit: {curve.critical_batch:,.0f} samples"
    text += f" (by seed {spread[0]:,.0f} to {spread[-1]:,.0f})" if len(spread) > 1 else ""
    text += f", at least {curve.least_steps:,.0f} steps and {curve.least_samples:,.0f} samples"
    lines.append(text)
    if noise is not None:
        scale, batch = noise
        text = f"measured noise scale: {scale:,.0f} samples (median of the runs at batch {batch:,})"
        lines.append(f"{text}, {scale / curve.critical_batch:.2g} times the fitted critical batch")
    return lines


def _regime_lines(found: Regimes | None, target: Target) -> list[str]:
    if found is None:
        return ["how far scaling goes is not known: the batches that met the target span less than a doubling"]
    lines = [f"perfect scaling up to batch {found.perfect:,}: twice the batch, half the steps to {target}"]
    if found.useful > found.perfect:
        lines.append(f"diminishing returns up to {found.useful:,}: fewer steps, but more samples")
    if found.largest > found.useful:
        lines.append(f"past {found.useful:,} twice the batch saves less than {100 * (1 - FEWER):.0f} % of the steps")
    return lines


def table(results: Results) -> str:
    """The metric at the end by rule and batch, and with a target the steps and samples that the best rule took to it."""
    head = [f"{results.target.metric}, batch", *(f"{b:,}" for b in results.batches)]
    body = [[rule, *(_text(results.cell(rule, b)) for b in results.batches)] for rule in results.rules]
    body += _spent(results)
    if results.target.value is not None:
        best = results.best()
        body.append([f"steps to {results.target}", *(_best(best.get(b), "steps") for b in results.batches)])
        body.append(["samples to it", *(_best(best.get(b), "samples") for b in results.batches)])
        body.append(["by rule", *(best[b][0] if b in best else "-" for b in results.batches)])
    return aligned([head, *body])


def _spent(results: Results) -> list[list[str]]:
    """A line for each rule with its mean samples, where they differ between rules or batches by more than one batch; else none."""
    cells = {rule: [results.cell(rule, b) for b in results.batches] for rule in results.rules}
    means = {rule: [mean(c.lengths) if c.lengths else None for c in found] for rule, found in cells.items()}
    told = [m for found in means.values() for m in found if m is not None]
    if not told or max(told) - min(told) <= max(results.batches):
        return []
    return [[f"samples, {rule}", *("-" if m is None else f"{m:,.0f}" for m in found)] for rule, found in means.items()]


def _text(cell: Cell) -> str:
    return str(cell) if cell.rows else "-"


def _best(found: tuple[str, Cell] | None, what: str) -> str:
    value = None if found is None else found[1].steps if what == "steps" else found[1].samples
    return "-" if value is None else f"{value:,.0f}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text in columns: the first to the left, the others to the right."""
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    lines = [[r[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(r[1:], widths[1:], strict=True))] for r in rows]
    return "\n".join("  ".join(cells).rstrip() for cells in lines)


def to_json(results: Results, about: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a sweep: `about` (what made it), the trials, the fit, the verdict."""
    curve, found, noise = results.fit(), results.regimes(), results.noise_scale()
    return {
        **about,
        "reference_batch": results.reference,
        "target": asdict(results.target),
        "trials": [r.to_json() for r in results.rows],
        "fit": curve and {**asdict(curve), "critical_batch": curve.critical_batch},
        "regimes": found and asdict(found),
        "noise_scale": noise and {"samples": noise[0], "batch": noise[1]},
        "verdict": verdict(results),
    }


def from_json(tree: Mapping[str, Any]) -> Results:
    """The results from the record that `to_json` gave."""
    return Results(tuple(Row(**r) for r in tree["trials"]), tree["reference_batch"], Target(**tree["target"]))
