"""One chart as HTML: an SVG that stretches with the page, texts that do not, and its numbers for the page's script. Pure.

Lines are drawn in a square of 1000 x 1000 that the browser stretches to any width; strokes keep their width and texts lie beside it
as HTML, so that a chart is as readable on a telephone as on a wall. Without the script all but the values under the pointer is
there.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import median_low

from harness.analysis.downsample import Bucket
from launch.report.axes import Axis, axis, labels, short
from launch.report.markup import Html, element

COLOURS = 8
"""Colours of the style sheet; a further series begins again."""
SIDE = 1000
SMOOTH = 60
"""A running mean goes over one part in so many of a curve, to either side; a shorter curve is not smoothed."""
LANE = 48
"""Resolution of the vertical event lines: events in the same of so many places share a line."""
PINS = 16
"""Resolution of the pins above a chart, so that they fit side by side on a telephone."""
BEYOND = 10.0
"""In a `robust` chart, values beyond so many times the usual range of the runs are cut off."""


@dataclass(frozen=True)
class Series:
    """One line. `dash`: for a second quantity of the same run. `points`: a dot at each value, for a few of them.

    `run`: the number of the run, by which the page's bar shows and hides it, and its script finds its steps and times.
    `smooth`: the line is a running mean, and what it is a mean of lies behind it.
    """

    name: str
    colour: int
    curve: Sequence[Bucket]
    run: int | None = None
    dash: bool = False
    points: bool = False
    smooth: bool = False


@dataclass(frozen=True)
class Mark:
    """Something that happened at `x` to a run, of a `kind` that the style sheet knows: bad, warn or note."""

    x: float
    kind: str
    text: str
    run: int


@dataclass(frozen=True)
class Chart:
    """What is shown. `low` and `high` bound the x-axis; `zero`: the y-axis begins at 0; `log` None: where values are far apart.

    `spans` (run, from x, to x) are shaded: what was trained there was thrown away. `robust`: a run that left all bounds is cut off
    at the top, with a mark, and does not flatten the others.
    """

    title: str
    note: str
    series: Sequence[Series]
    low: float
    high: float
    marks: Sequence[Mark] = ()
    spans: Sequence[tuple[int, float, float]] = ()
    unit: str = ""
    zero: bool = False
    log: bool | None = None
    tall: bool = False
    log_x: bool = False
    robust: bool = False
    x_name: str = "samples"


def chart(c: Chart) -> Html:
    """The figure."""
    shown = [s for s in c.series if any(b.count for b in s.curve)]
    if not shown:
        return Html("")
    across = Axis(c.low, c.high if c.high > c.low else c.low + 1, log=c.log_x and c.low > 0)
    limit = _limit(shown) if c.robust else math.inf
    up = axis(_values(shown, limit), zero=c.zero, log=c.log)
    ticks_y = [(t, up.place(t)) for t in up.ticks()]
    pins = _grouped(c.marks, across, PINS)
    frame = {"viewBox": f"0 0 {SIDE} {SIDE}", "preserveAspectRatio": "none", "aria-hidden": "true"}
    lines = [part for number, s in enumerate(shown) for part in _drawn(s, str(number), across, up)]
    beside = _tick_labels(up, ticks_y, across) + _beyond_marks(shown, limit, across)
    data = {"data-chart": json.dumps(_numbers(c, shown, across, up), separators=(",", ":"), allow_nan=False)}
    body = {"class": "plot", "tabindex": "0", "role": "img", "aria-label": _spoken(c, shown)}
    return element(
        "figure",
        {"class": "chart tall" if c.tall else "chart"},
        element("figcaption", {}, element("h3", {}, c.title), element("span", {"class": "note"}, c.note)),
        element("div", {"class": "lane"}, *[_pin(*g, first=n == 0) for n, g in enumerate(pins)]) if pins else Html(""),
        element("div", body | data, element("svg", frame, *_grid(c, across, ticks_y), *lines), *beside),
        _legend(shown) if len(shown) > 1 and shown[0].run is None else Html(""),
    )


def _grid(c: Chart, across: Axis, ticks_y: Sequence[tuple[float, float]]) -> list[Html]:
    """The background of the lines: the grid, the events, and the spans that were discarded."""
    grid = [_line("grid", 0, SIDE * (1 - y), SIDE, SIDE * (1 - y)) for _, y in ticks_y]
    grid += [_line(f"event {kind}", SIDE * x, 0, SIDE * x, SIDE) for x, kind, _, _ in _grouped(c.marks, across, LANE)]
    return grid + [_shaded(run, SIDE * across.place(begin), SIDE * across.place(end)) for run, begin, end in c.spans]


def _tick_labels(up: Axis, ticks_y: Sequence[tuple[float, float]], across: Axis) -> list[Html]:
    """The numbers beside both axes."""
    ticks_x = [(t, across.place(t)) for t in across.ticks(6)]
    beside = [_text("y", f"top:{100 * (1 - y):.2f}%", text) for text, y in _labelled(up, ticks_y)]
    return beside + [_text("x", f"left:{100 * x:.2f}%", text) for text, x in _labelled(across, ticks_x)]


def _beyond_marks(shown: Sequence[Series], limit: float, across: Axis) -> list[Html]:
    """A mark for each series that exceeds the chart."""
    beyond = [(n, s, found) for n, s in enumerate(shown) if (found := [b for b in s.curve if b.count and b.mean > limit])]
    return [_beyond(n, s, found[0], max(b.high for b in found), across) for n, s, found in beyond]


def _limit(shown: Sequence[Series]) -> float:
    """The upper limit of a robust chart: BEYOND times the range that half of the series stay within."""
    spans = []
    for s in shown:
        means = sorted(b.mean for b in s.curve if b.count)
        cut = len(means) // 20
        spans.append((means[cut], means[len(means) - 1 - cut]))
    low, high = (median_low(ends) for ends in zip(*spans, strict=True))
    return low + BEYOND * (high - low or abs(high)) or math.inf


def _beyond(number: int, s: Series, first: Bucket, highest: float, across: Axis) -> Html:
    """The mark where a series exceeds the chart."""
    said = f"{s.name} leaves the chart here: up to {short(highest)}"
    place = f"left:{100 * across.place(first.last):.2f}%"
    found = {"data-line": str(number), "data-x": f"{first.last:g}"}
    return element("span", {"class": f"beyond c{s.colour}", "style": place, "title": said} | found, "▲")


def _values(shown: Sequence[Series], limit: float) -> list[float]:
    """What the y-axis must show: all means up to `limit`, and the band except for its most extreme hundredth, which may be cut
    off."""
    buckets = [b for s in shown for b in s.curve if b.count and b.mean <= limit]
    lows, highs = sorted(b.low for b in buckets), sorted(b.high for b in buckets)
    cut = len(buckets) // 100
    return [b.mean for b in buckets] + lows[cut:] + [high for high in highs[: len(highs) - cut] if high <= limit]


def _drawn(s: Series, number: str, across: Axis, up: Axis) -> list[Html]:
    """A line with its band, and dots where there are few values. `number`: by which the legend's button finds them."""
    parts = [b for b in s.curve if b.count]
    spots = [(SIDE * across.place(b.last), SIDE * (1 - up.place(b.mean))) for b in parts]
    out = [("band", _band(parts, [x for x, _ in spots], up))] if any(b.high > b.low for b in parts) else []
    if s.smooth and len(parts) > SMOOTH:
        out.append(("line faint", _path(spots)))
        spots = [(x, SIDE * (1 - up.place(y))) for (x, _), y in zip(spots, running_mean(parts), strict=True)]
    out.append(("line dash" if s.dash else "line", _path(spots)))
    if s.points or len(spots) == 1:
        out.append(("dots", "".join(f"M{x:.1f} {y:.1f}h0" for x, y in spots)))
    return [element("path", {"class": f"{kind} c{s.colour}", "data-line": number, "d": path}) for kind, path in out]


def _band(parts: Sequence[Bucket], xs: Sequence[float], up: Axis) -> str:
    """The path around all values of the buckets, from the highest of each to the lowest."""
    upper = [(x, SIDE * (1 - up.place(b.high))) for x, b in zip(xs, parts, strict=True)]
    lower = [(x, SIDE * (1 - up.place(b.low))) for x, b in zip(xs, parts, strict=True)]
    return _path([*upper, *reversed(lower)]) + "Z"


def running_mean(parts: Sequence[Bucket]) -> list[float]:
    """For each bucket the mean of all points within a SMOOTH-th of the curve to either side, fewer at its ends."""
    counts = list(accumulate((b.count for b in parts), initial=0))
    sums = list(accumulate((b.count * b.mean for b in parts), initial=0.0))
    out = []
    for place in range(len(parts)):
        reach = min(round(len(parts) / SMOOTH), place, len(parts) - 1 - place)
        low, high = place - reach, place + reach + 1
        out.append((sums[high] - sums[low]) / (counts[high] - counts[low]))
    return out


def _path(spots: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {max(min(y, 9 * SIDE), -9 * SIDE):.1f}" for x, y in spots)


def _shaded(run: int, begin: float, end: float) -> Html:
    corners = _path([(begin, 0), (end, 0), (end, SIDE), (begin, SIDE)])
    return element("path", {"class": "discarded", "data-run": str(run), "d": corners + "Z"})


def _labelled(along: Axis, ticks: Sequence[tuple[float, float]]) -> list[tuple[str, float]]:
    """(what stands beside a tick, its place)."""
    values = [t for t, _ in ticks]
    texts = [short(t) for t in values] if along.log else labels(values)
    return [(text, place) for text, (_, place) in zip(texts, ticks, strict=True)]


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Html:
    return element("path", {"class": kind, "d": f"M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"})


def _text(kind: str, style: str, text: str) -> Html:
    return element("span", {"class": f"tick {kind}", "style": style}, text)


def _grouped(marks: Sequence[Mark], across: Axis, places: int) -> list[tuple[float, str, int, str]]:
    """(place, most serious kind, how many, their texts) of marks that lie close together, from left to right."""
    cells: dict[int, list[Mark]] = {}
    for mark in marks:
        cells.setdefault(round(places * across.place(mark.x)), []).append(mark)
    out = []
    for cell, held in sorted(cells.items()):
        worst = min(held, key=lambda m: ("bad", "warn", "note").index(m.kind))
        texts = "\n".join(dict.fromkeys(m.text for m in held))
        out.append((cell / places if places == PINS else across.place(worst.x), worst.kind, len(held), texts))
    return out


def _pin(x: float, kind: str, count: int, text: str, *, first: bool) -> Html:
    """A pin that shows its text where it is pointed at, touched or focused; Tab reaches the first of a chart, arrows the others."""
    label = {"bad": "✕", "warn": "!", "note": "•"}[kind] if count == 1 else str(count)
    side = {"style": f"left:{100 * x:.2f}%", "data-side": "left" if x > 0.5 else "right"}
    said = {"aria-label": text, "data-text": text, "tabindex": "0" if first else "-1"}
    return element("button", {"type": "button", "class": f"pin {kind}"} | side | said, label)


def _legend(shown: Sequence[Series]) -> Html:
    def key(s: Series) -> Html:
        swatch = element("i", {"class": f"swatch c{s.colour}" + (" dash" if s.dash else "")})
        return element("li", {}, element("button", {"type": "button", "aria-pressed": "true"}, swatch, s.name))

    return element("ul", {"class": "legend"}, *[key(s) for s in shown])


def _numbers(c: Chart, shown: Sequence[Series], across: Axis, up: Axis) -> dict[str, object]:
    """What the script works with: both axes, and for each series x, mean, lowest and highest, rounded to five digits."""

    def rounded(value: float) -> float | None:
        return float(f"{value:.5g}") if math.isfinite(value) else None

    lines = [
        {
            "name": s.name,
            "colour": s.colour,
            "run": s.run,
            "x": [b.last for b in s.curve],
            "y": [rounded(b.mean) for b in s.curve],
            "low": [rounded(b.low) for b in s.curve] if any(b.count > 1 for b in s.curve) else [],
            "high": [rounded(b.high) for b in s.curve] if any(b.count > 1 for b in s.curve) else [],
            "bad": {str(i): b.bad for i, b in enumerate(s.curve) if b.bad},
        }
        for s in shown
    ]
    marks = [{"x": m.x, "kind": m.kind, "text": m.text, "run": m.run} for m in c.marks]
    return {
        "low": across.low,
        "high": across.high,
        "log": across.log,
        "up": {"low": up.low, "high": up.high, "log": up.log},
        "unit": c.unit,
        "x": c.x_name,
        "lines": lines,
        "marks": marks,
    }


def _spoken(c: Chart, shown: Sequence[Series]) -> str:
    """The text for screen readers."""
    told = []
    for s in shown:
        parts = [b for b in s.curve if b.count]
        told.append(f"{s.name} from {short(parts[0].mean)} to {short(parts[-1].mean)}{c.unit}")
    return f"{c.title} over {c.x_name}: " + "; ".join(told)
