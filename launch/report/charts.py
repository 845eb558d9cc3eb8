"""Which curves of runs are shown, and how: all runs in each chart, over samples. Pure."""

from collections.abc import Iterable, Sequence

from harness.analysis.downsample import Bucket, Downsampler
from harness.analysis.run_record import OF_A_STEP, TROUBLES, RunRecord
from launch.report.bar import bar
from launch.report.chart import COLOURS, Chart, Mark, Series, chart
from launch.report.markup import Html, element

QUIET = ("checkpoint", "compiled", "complete")
"""Codes of events that are listed but not marked on curves."""
SHADED = "; shaded: trained, then rolled back by the guard"
BY_MOMENTS = "; by moments it may be far too high"
NOTES = ("resumed", "plateau", "batch", "stop_requested", "early_stop", "warm_up")
"""Codes of events that are no trouble."""


def charts(stories: Sequence[RunRecord]) -> Html:
    """The section of curves."""
    end = max(_end(s) for s in stories)
    marks = [mark for n, s in enumerate(stories) for mark in _marks(s, n, len(stories) > 1)]
    spans = [(n, *span) for n, s in enumerate(stories) for span in s.discarded]
    shown = [
        Chart(
            "Training loss",
            "line: running mean; band: single steps, or the lowest and highest of several" + (SHADED if spans else ""),
            _steps(stories, "train/loss", smooth=True),
            0,
            end,
            marks,
            spans,
            tall=True,
            robust=True,
        ),
        *_evaluations(stories, end),
        Chart("Learning rate", "as applied, step by step", _steps(stories, "train/lr"), 0, end, zero=True, log=False, robust=True),
        Chart(
            "Batch against noise scale",
            "dashed: the noise scale, past which a larger batch is mostly wasted (McCandlish et al. 2018)"
            + (BY_MOMENTS if any("batch/noise_scale_moments_samples" in s.curves for s in stories) else ""),
            [
                *_steps(stories, "batch/global_samples"),
                *_steps(stories, "batch/noise_scale_samples", "noise scale", dash=True),
                *_steps(stories, "batch/noise_scale_moments_samples", "noise scale by moments", dash=True),
            ],
            0,
            end,
            log=True,
            unit=" samples",
        ),
        Chart("Gradient norm", "before clipping", _steps(stories, "train/grad_norm", smooth=True), 0, end, marks, robust=True),
        Chart("Throughput", "samples per second of training time", _steps(stories, "throughput/samples_per_s"), 0, end, zero=True),
        Chart(
            "Model FLOPs utilisation",
            "MFU, % of the devices' peak",
            _steps(stories, "throughput/mfu_pct"),
            0,
            end,
            unit=" %",
            zero=True,
        ),
        _memory(stories, end),
        Chart(
            "Update / weights",
            "norm of a step's update over that of the weights",
            _steps(stories, "train/update_to_param_ratio"),
            0,
            end,
            robust=True,
        ),
    ]
    return element("section", {"class": "charts"}, *bar(stories), *[chart(c) for c in shown])


def _memory(stories: Sequence[RunRecord], end: float) -> Chart:
    """Memory of the fullest rank; that of GPUs only where there are any."""
    host = "memory/host_rss_gib"
    on_gpu = [s for s in _steps(stories, "memory/gpu_peak_reserved_gib") if any(b.high > 0 for b in s.curve)]
    if not on_gpu:
        return Chart("Memory", "GiB of the largest process", _steps(stories, host), 0, end, unit=" GiB", zero=True)
    lines = [*on_gpu, *_steps(stories, host, "host", dash=True)]
    return Chart(
        "Memory", "GiB of the fullest GPU; dashed: of the largest process on its host", lines, 0, end, unit=" GiB", zero=True
    )


def points(told: Iterable[tuple[float, float]]) -> list[Bucket]:
    """Values one by one, as a curve."""
    thin = Downsampler()
    for x, y in told:
        thin.add(x, y)
    return thin.curve()


def _steps(stories: Sequence[RunRecord], name: str, suffix: str = "", *, dash: bool = False, smooth: bool = False) -> list[Series]:
    return [
        Series(f"{s.name} {suffix}".strip(), n % COLOURS, s.curves[name], n, dash=dash, smooth=smooth)
        for n, s in enumerate(stories)
        if name in s.curves
    ]


EMA = "eval/ema_"
"""Measures of the weights' running average: dashed, beside those of the weights themselves."""
TITLES = {
    "loss": ("Validation loss", "each sample of the split once"),
    "generalization_gap": ("Generalization gap", "validation loss less training loss"),
    "sharpness": ("Sharpness", "largest eigenvalue of the loss's Hessian"),
}


def _evaluations(stories: Sequence[RunRecord], end: float) -> list[Chart]:
    """A chart for each measure, the gap last."""
    found = {name for s in stories for name in s.evals}
    names = sorted(found, key=lambda n: (n.endswith(("gap", "sharpness")), n != "eval/loss", n))
    out = []
    for name in names:
        short = name.partition("/")[2]
        average = EMA + short
        if name.startswith(EMA) and "eval/" + name.removeprefix(EMA) in found:
            continue
        lines = [_measured(s, n, name) for n, s in enumerate(stories) if name in s.evals]
        lines += [_measured(s, n, average) for n, s in enumerate(stories) if average in s.evals]
        plain = short.removesuffix("_pct").replace("_", " ").capitalize()
        title, note = TITLES.get(short, (plain, "each sample of the split once"))
        out.append(Chart(title, note, lines, 0, end, unit=" %" if short.endswith("_pct") else "", robust=True))
    return out


def _measured(s: RunRecord, number: int, name: str) -> Series:
    average = name.startswith(EMA)
    called = f"{s.name}, averaged weights" if average else s.name
    return Series(called, number % COLOURS, points(s.evals[name]), number, dash=average, points=True)


def _marks(s: RunRecord, number: int, several: bool) -> Iterable[Mark]:
    warned = {code for code, _ in s.warnings}
    for kind in s.kinds:
        if kind.code in QUIET or kind.code in warned:
            continue
        told = "bad" if kind.code in TROUBLES else "note" if kind.code in NOTES else "warn"
        count = f" ({kind.count} times)" if kind.count > 1 else ""
        for samples, step in kind.places:
            text = f"{s.name + ': ' if several else ''}{kind.code}{count}: {kind.message}"
            yield Mark(samples, told, text + (f"\nits batch: {s.batch_of(step)}" if kind.code in OF_A_STEP else ""), number)


def _end(s: RunRecord) -> float:
    return max(s.planned("total_samples") or 0.0, float(s.samples))
