"""The report as text for a terminal: runs -> lines. Pure."""

from collections.abc import Iterable, Sequence

from harness.analysis.compare_runs import Comparison
from harness.analysis.downsample import Bucket
from harness.analysis.run_record import PARTS, RunRecord, best_by
from launch.report.axes import Axis, axis, clock, short
from launch.report.chart import running_mean
from launch.report.sections import SHOWN, lowered, measure, value

BARS = "▁▂▃▄▅▆▇█"
COLUMNS = 56
CURVES = {
    "train/loss": "training loss",
    "train/lr": "learning rate",
    "train/grad_norm": "gradient norm",
    "batch/global_samples": "global batch",
    "batch/noise_scale_samples": "noise scale",
    "batch/noise_scale_moments_samples": "noise scale by moments",
    "throughput/samples_per_s": "samples/s",
}
"""The curves that are drawn, each run a line of bars on one scale."""


FROM_ZERO = ("train/lr", "batch/global_samples", "throughput/samples_per_s")


def text(stories: Sequence[RunRecord], comparison: Comparison | None) -> str:
    """The whole report."""
    lines: list[str] = []
    for s in stories:
        lines += [*_run(s), ""]
    if comparison:
        lines += [*_compared(comparison), ""]
    lines += [*_curves(stories), "", *_times(stories), "", *_events(stories)]
    if len(stories) == 1:
        lines += ["", *_plan(stories[0])]
    return "\n".join(clean(line) for line in lines).rstrip() + "\n"


def clean(line: str) -> str:
    """Without control characters: a run's name or message must not steer the terminal."""
    return "".join(c if c.isprintable() else " " for c in line).rstrip()


def columns(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Rows in columns as wide as their widest cell, the first `left` to the left and the rest to the right."""
    wide = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))] if rows else []
    return [
        "  ".join(c.ljust(w) if n < left else c.rjust(w) for n, (c, w) in enumerate(zip(row, wide, strict=True))) for row in rows
    ]


def _run(s: RunRecord) -> list[str]:
    plan, ended = s.plan, (s.reason or "not ended") + (", saved by the guard" if s.saved else "")
    best = ", ".join(f"{measure(n)} {short(v)}" for n, v in s.best.items() if not n.endswith("_gap"))
    batch = f"batch {short(s.planned('global_batch'))} (k = {short(s.planned('ratio'))}, rule {plan.get('rule')})"
    ranks = s.planned("world_size")
    where = f"{short(ranks)} rank{'s' * (ranks != 1)}, {plan.get('backend')}"
    noise = "not known" if s.noise_scale is None else f"{short(s.noise_scale)} samples"
    return [
        f"{s.name}: {ended.replace('_', ' ')} after {s.step:,} steps, {s.samples:,} samples"
        + (f"; {s.message}" if s.message else ""),
        f"  {batch}, lr {lowered(s)}, {where}, noise scale {noise}",
        f"  best by {measure(best_by(s.config))}: {best or 'not evaluated'}",
    ]


def _compared(c: Comparison) -> list[str]:
    head = ["", "k", "batch", "lr", "training loss", *[measure(m) for m in c.measures], "against the reference"]
    rows = [
        [
            r.name,
            short(r.ratio),
            short(r.batch),
            short(r.lr),
            short(r.loss),
            *[short(r.evals.get(m)) for m in c.measures],
            r.against if n else "reference",
        ]
        for n, r in enumerate(c.rows)
    ]
    return [f"compared at {c.samples:,} samples", *columns([head, *rows])]


def _curves(stories: Sequence[RunRecord]) -> list[str]:
    """Each curve on one scale for all runs, with its first and last value."""
    out = []
    for name, title in CURVES.items():
        shown = [(s.name, [b for b in s.curves.get(name, []) if b.count]) for s in stories]
        shown = [(run, parts) for run, parts in shown if parts]
        if not shown:
            continue
        flat = name in FROM_ZERO
        up = axis([y for _, parts in shown for y in running_mean(parts)], zero=flat, log=False if flat else None)
        end = max(parts[-1].last for _, parts in shown)
        out.append(f"{title} over {short(end)} samples" + (", logarithmic" if up.log else ""))
        rows = [[run, short(parts[0].mean), bars(parts, up, end), short(parts[-1].mean)] for run, parts in shown]
        out += ["  " + line for line in columns(rows)]
    return out


def bars(parts: Sequence[Bucket], up: Axis, end: float) -> str:
    """A curve from 0 to `end` as COLUMNS bars; between two values stands the one before."""
    cells: list[list[float]] = [[] for _ in range(COLUMNS)]
    place = 0
    for b, y in zip(parts, running_mean(parts), strict=True):
        place = min(int(COLUMNS * b.last / end), COLUMNS - 1) if end > 0 else 0
        cells[place].append(y)
    out, bar = [], " "
    for cell in cells[: place + 1]:
        if cell:
            share = up.place(sum(cell) / len(cell))
            bar = BARS[min(max(int(share * len(BARS)), 0), len(BARS) - 1)]
        out.append(bar)
    return "".join(out).ljust(COLUMNS)


def _times(stories: Sequence[RunRecord]) -> list[str]:
    out = []
    for s in stories:
        total = sum(s.seconds.values())
        if total > 0:
            shares = [(PARTS[p], sec) for p, sec in s.seconds.items() if p in PARTS and sec > 0]
            out.append(f"where the time of {s.name} went: {clock(total)}")
            out += ["  " + line for line in columns([[part, clock(sec), f"{100 * sec / total:.1f} %"] for part, sec in shares])]
    return out


def _events(stories: Sequence[RunRecord]) -> Iterable[str]:
    told = [(s, k) for s in stories for k in s.kinds]
    if told:
        yield "what happened"
    for s, k in told:
        where = f"at {k.first:,}" if k.first == k.last else f"{k.count} times, {k.first:,} to {k.last:,}"
        yield f"  {s.name + ': ' if len(stories) > 1 else ''}[{k.code}] {where} samples: {k.message}"


def _plan(s: RunRecord) -> list[str]:
    names = [n for n in SHOWN if s.plan.get(n) is not None]
    width = max((len(n) for n in names), default=0)
    return ["plan", *[f"  {n.ljust(width)}  {value(s.plan[n]):>12}  {s.sources.get(n, '')}" for n in names]]
