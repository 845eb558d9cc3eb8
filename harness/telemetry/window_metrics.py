"""A window's metrics from what was measured. True sums over its steps.

Losses and gradient norms that are not finite have no mean: those steps are left out of it, reported one by one, and counted.
"""

import math
from dataclasses import dataclass
from statistics import fmean

from harness.telemetry.events import Metrics
from harness.telemetry.measurements import NormRow, RanksRow, Reading


@dataclass(frozen=True)
class Window:
    """What was measured, over `samples` real samples and `seconds` of training time, at the rate `lr` of the last step."""

    reading: Reading
    samples: int
    seconds: float
    lr: float
    ranks: int


@dataclass(frozen=True)
class Work:
    """What a sample costs: `items` the loss could count in it, `flops` of its training. `peak_tflops` of one device, if known."""

    item: str
    items: float | None
    flops: float | None
    peak_tflops: float | None
    baseline: float | None


def training(w: Window) -> Metrics:
    """The group train/."""
    rows, norms = w.reading.steps, w.reading.norms
    good = [r for r in rows if math.isfinite(r.loss_sum)]
    items = sum(r.count for r in good)
    seen = [r.grad_norm for r in rows if math.isfinite(r.grad_norm) and not r.empty]
    weight = sum(n.weight_square for n in norms.values())
    out: Metrics = {
        "train/loss": sum(r.loss_sum for r in good) / items if items else math.nan,
        "train/loss_max_rank": w.reading.loss_max_rank,
        "train/lr": w.lr,
        "train/grad_norm": fmean(seen) if seen else math.nan,
        "train/clip_fraction": sum([r.clip_factor < 1 for r in rows]) / len(rows),
        "train/param_norm": root(weight),
        "train/update_to_param_ratio": _ratio(*norms.values()),
    }
    for label, norm in norms.items():
        out[f"train/{label}_param_norm"] = root(norm.weight_square)
        out[f"train/{label}_update_to_param_ratio"] = _ratio(norm)
        out[f"train/{label}_grad_norm"] = None if math.isnan(norm.grad_square) else root(norm.grad_square)
    return out


def throughput(w: Window, work: Work) -> Metrics:
    """The group throughput/. Rates are over training time alone, and null in the window of the first step, which has none."""
    rate, ranks = _per(w.samples, w.seconds), w.reading.ranks
    items = sum(r.count for r in w.reading.steps)
    laps = sorted(w.reading.laps_s)
    spent = sum(laps)
    computed = ranks.computed * work.items if work.items else None
    tflops = None if rate is None or work.flops is None else rate * work.flops / w.ranks / 1e12
    out: Metrics = {
        "throughput/samples_per_s": rate,
        "throughput/samples_per_s_per_device": _per(rate, w.ranks),
        "throughput/step_p50_ms": 1e3 * laps[len(laps) // 2],
        "throughput/step_p95_ms": 1e3 * laps[min(math.ceil(0.95 * len(laps)), len(laps)) - 1],
        "throughput/data_wait_pct": _per(100 * ranks.data_wait_s, spent),
        "throughput/comm_wait_pct": _per(None if math.isnan(ranks.comm_wait_s) else 100 * ranks.comm_wait_s, spent),
        "throughput/host_sync_count": w.reading.syncs,
        "throughput/tflops_per_device": tflops,
        "throughput/mfu_pct": _per(None if tflops is None else 100 * tflops, work.peak_tflops),
        "throughput/scaling_efficiency_pct": _per(100 * rate / w.ranks if rate else None, work.baseline),
        "throughput/padding_pct": 100 * (1 - items / computed) if computed else None,
    }
    if work.item == "token":
        tokens = out["throughput/tokens_per_s"] = _per(items, w.seconds)
        out["throughput/tokens_per_s_per_device"] = _per(tokens, w.ranks)
    return out


def memory(ranks: RanksRow) -> Metrics:
    """The group memory/."""
    return {
        "memory/gpu_peak_allocated_gib": ranks.gpu_allocated_gib,
        "memory/gpu_peak_reserved_gib": ranks.gpu_reserved_gib,
        "memory/alloc_retries": ranks.alloc_retries,
        "memory/ooms": ranks.ooms,
        "memory/host_rss_gib": ranks.host_rss_gib,
    }


def skew(ranks: RanksRow) -> Metrics:
    """The metrics of the slowest rank; none for a single rank."""
    if math.isnan(ranks.comm_wait_s):
        return {"reliability/rank_skew_pct": None, "reliability/slowest_rank": None}
    others = ranks.others_busy_s
    return {
        "reliability/rank_skew_pct": 100 * max(ranks.busy_s / others - 1, 0.0) if others > 0 else None,
        "reliability/slowest_rank": float(ranks.slowest),
    }


def root(square: float) -> float:
    """The square root; NaN stays NaN."""
    return math.sqrt(square) if square >= 0 else math.nan


def _ratio(*norms: NormRow) -> float | None:
    """Norm of the update over that of the weights it moved, in the elements followed."""
    weight, update = sum(n.sampled_square for n in norms), sum(n.update_square for n in norms)
    return root(update / weight) if weight > 0 else None


def _per(value: float | None, by: float | None) -> float | None:
    """`value` / `by`; None if either is not known, or `by` is 0."""
    return value / by if value is not None and by else None
