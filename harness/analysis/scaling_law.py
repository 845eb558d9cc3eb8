"""Many journals -> your own law: the best lr over batch, horizon and size, the critical batch, the loss over data."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

import numpy as np

from harness.analysis.power_fit import LEVEL, Estimate, LossFit, fit_loss, regress
from harness.analysis.run_record import RunRecord
from harness.plan.lr_law import QUANTITIES, LrLaw

NEIGHBOURS = 5
"""How many rates around the best one the parabola is fitted to."""
Setting = tuple[float, float, float]
"""Batch, horizon and parameters of a run."""


@dataclass(frozen=True)
class Run:
    """A run that came to its end."""

    setting: Setting
    lr: float
    loss: float
    optimizer: str


@dataclass(frozen=True)
class Law:
    """What the runs say: `lines` as text, and the law of lr where there is one."""

    lines: tuple[str, ...]
    lr: LrLaw | None
    exponents: dict[str, Estimate]
    loss: LossFit | None


@dataclass(frozen=True)
class EndedRun:
    """What a fit needs of one run, in samples; `why` says why the run cannot be used, and is empty where it can."""

    name: str
    why: str
    batch: float
    horizon: float
    lr: float
    parameters: float
    sample_tokens: float | None
    optimizer: str
    loss: float


def of_record(record: RunRecord, metric: str) -> EndedRun:
    """A run by its journal."""
    why = record.died or ("not over" if record.reason not in ("complete", "early_stop") else "")
    loss = record.evals[metric][-1][1] if record.evals.get(metric) else math.nan
    batch, horizon, lr = (record.planned(name) or math.nan for name in ("global_batch", "total_samples", "lr"))
    return EndedRun(
        name=record.name,
        why=why or ("" if math.isfinite(loss) else f"no {metric} at its end"),
        batch=batch,
        horizon=horizon,
        lr=lr,
        parameters=record.parameters or math.nan,
        sample_tokens=record.planned("sample_tokens"),
        optimizer=str(record.plan.get("optimizer", "")),
        loss=loss,
    )


def runs_of(ended: Iterable[EndedRun]) -> tuple[list[Run], str, list[str]]:
    """(runs, the unit of batch and horizon, what was left out and why). Tokens where every run knows them, else samples."""
    whole, left = list[EndedRun](), list[str]()
    for run in ended:
        if run.why:
            left.append(f"{run.name} left out: {run.why}")
        else:
            whole.append(run)
    tokens = bool(whole) and all(run.sample_tokens for run in whole)
    return [_run(run, (run.sample_tokens or 1) if tokens else 1) for run in whole], "tokens" if tokens else "samples", left


def _run(run: EndedRun, each: float) -> Run:
    return Run((run.batch * each, run.horizon * each, run.parameters), run.lr, run.loss, run.optimizer)


def fit_law(runs: Sequence[Run], unit: str, metric: str) -> Law:
    """The laws that the runs determine, with their errors, and what is not determined."""
    best = {setting: found for setting in _settings(runs) if (found := optimum([r for r in runs if r.setting == setting]))}
    law, exponents, lines = _fit_lr(runs, best, unit)
    loss, more = _fit_loss(runs, best, unit, metric)
    return Law((*lines, *more), law, exponents, loss)


def _settings(runs: Sequence[Run]) -> list[Setting]:
    return sorted({r.setting for r in runs})


def optimum(runs: Sequence[Run]) -> tuple[float, float] | None:
    """(best lr, its loss) by a parabola over log lr; None without three rates, or where the best one is at an end of them."""
    rates = sorted({r.lr for r in runs})
    losses = [mean(r.loss for r in runs if r.lr == rate) for rate in rates]
    at = losses.index(min(losses)) if rates else 0
    if not 0 < at < len(rates) - 1:
        return None
    first = min(max(at - NEIGHBOURS // 2, 0), max(len(rates) - NEIGHBOURS, 0))
    near = slice(first, first + NEIGHBOURS)
    x = np.log(rates[near]) - math.log(rates[at])
    a, b, c = np.polyfit(x, losses[near], 2)
    inside = a > 0 and x[0] < -b / (2 * a) < x[-1]
    return (rates[at] * math.exp(-b / (2 * a)), float(c - b * b / (4 * a))) if inside else None


def _fit_lr(
    runs: Sequence[Run], best: dict[Setting, tuple[float, float]], unit: str
) -> tuple[LrLaw | None, dict[str, Estimate], list[str]]:
    """The law of the best lr, its exponents, and both as text."""
    optimizers = {r.optimizer for r in runs}
    found = f"{len(best)} of {len(_settings(runs))} settings have three learning rates with the best one in the middle"
    if len(optimizers) > 1:
        return None, {}, [f"lr: cannot tell: the runs have several optimizers ({', '.join(sorted(optimizers))})"]
    varied = [n for n in range(len(QUANTITIES)) if len({s[n] for s in best}) > 1]
    names = [QUANTITIES[n] for n in varied]
    done = _regress_lr(best, varied)
    if done is None:
        together = f"; {', '.join(names)} must vary independently" if names else ""
        return None, {}, [f"lr: cannot tell from {len(runs)} runs: {found}{together}"]
    (constant, *powers), missed = done
    exponents = dict(zip(names, powers, strict=True))
    form = " ".join(f"{name}^{estimate.value:.3g}" for name, estimate in exponents.items())
    source = f"fit of {len(runs)} runs: lr ~ {form}, missed by x{math.exp(missed):.3g}"
    ranges = {name: (min(column), max(column)) for name, column in zip(QUANTITIES, zip(*best, strict=True), strict=True)}
    law = LrLaw(
        unit=unit,
        constant=constant.value,
        exponents={name: e.value for name, e in exponents.items()},
        ranges=ranges,
        optimizer=optimizers.pop(),
        source=source,
    )
    lines = [f"lr from {len(runs)} runs: {found}; the law misses them by x{math.exp(missed):.3g}"]
    lines += [f"  lr ~ {name}^{e} ({LEVEL} % interval)" for name, e in exponents.items()]
    fixed = [f"{name} {ranges[name][0]:,.0f}" for name in QUANTITIES if name not in names]
    return law, exponents, lines + ([f"  all runs have {' and '.join(fixed)}: nothing is known of others"] if fixed else [])


def _regress_lr(best: Mapping[Setting, tuple[float, float]], varied: Sequence[int]) -> tuple[list[Estimate], float] | None:
    """(log of the law's constant and its exponents, its typical error) over the quantities that vary; None: not determined."""
    if not varied:
        return None
    features = np.log(np.array([[s[n] for n in varied] for s in best], dtype=float))
    return regress(features, np.log([lr for lr, _ in best.values()]))


def _fit_loss(
    runs: Sequence[Run], best: dict[Setting, tuple[float, float]], unit: str, metric: str
) -> tuple[LossFit | None, list[str]]:
    """The loss over data and batch, of the model size with the most settings, as text too."""
    lowest = {s: best[s][1] if s in best else min(r.loss for r in runs if r.setting == s) for s in _settings(runs)}
    size = Counter(s[2] for s in lowest).most_common(1)[0][0] if lowest else 0.0
    kept = {s: loss for s, loss in lowest.items() if s[2] == size}
    found = fit_loss([s[1] for s in kept], [s[0] for s in kept], list(kept.values()))
    if isinstance(found, str):
        return None, [f"{metric}: cannot tell from {len(runs)} runs: {found}"]
    head = f"{metric} from {len(kept)} settings of {size:,.0f} parameters, missed by {found.missed:.3g}"
    lines = [f"{head}: falls to {found.floor} as horizon^-{found.power}"]
    if found.critical:
        lines.append(f"  critical batch: {found.critical} {unit}, at which a run needs twice the data")
    return found, lines
