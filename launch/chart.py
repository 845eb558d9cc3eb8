"""One chart as HTML: an SVG that stretches with the page, texts that do not, and its numbers for the page's script. Pure.

Lines lie in a square of 1000 x 1000 that the browser stretches to any width; strokes keep their width and texts lie beside it as
HTML, so that a chart is as readable on a telephone as on a wall. Without the script all but the values under the pointer is there.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from harness.stats.thin import Bucket
from launch.markup import Html, element
from launch.scale import Axis, axis, short

COLOURS = 8
"""Colours of the style sheet; a further series begins anew."""
SIDE = 1000
SMOOTH = 60
"""A running mean goes over one part in so many of a curve, to either side; a shorter curve is not smoothed."""
LANE = 48
"""Places for marks over a chart: those that share one share a mark."""


@dataclass(frozen=True)
class Series:
    """One line. `dash`: for a second quantity of the same run. `points`: a dot at each value, for a few of them.

    `smooth`: the line is a running mean, and what it is a mean of lies behind it.
    """

    name: str
    colour: int
    curve: Sequence[Bucket]
    dash: bool = False
    points: bool = False
    smooth: bool = False


@dataclass(frozen=True)
class Mark:
    """Something that happened at `x`, of a `kind` that the style sheet knows: bad, warn or note."""

    x: float
    kind: str
    text: str


@dataclass(frozen=True)
class Chart:
    """What is shown. `low` and `high` bound the x-axis; `zero`: the y-axis begins at 0; `log` None: where values are far apart."""

    title: str
    note: str
    series: Sequence[Series]
    low: float
    high: float
    marks: Sequence[Mark] = ()
    unit: str = ""
    zero: bool = False
    log: bool | None = None
    tall: bool = False
    log_x: bool = False
    x_name: str = "samples"


def chart(c: Chart) -> Html:
    """The figure."""
    shown = [s for s in c.series if any(b.count for b in s.curve)]
    if not shown:
        return Html("")
    across = Axis(c.low, c.high if c.high > c.low else c.low + 1, log=c.log_x and c.low > 0)
    up = axis(_values(shown), zero=c.zero, log=c.log)
    ticks_y = [(t, up.place(t)) for t in up.ticks()]
    ticks_x = [(t, across.place(t)) for t in across.ticks(6)]
    grid = [_line("grid", 0, SIDE * (1 - y), SIDE, SIDE * (1 - y)) for _, y in ticks_y]
    grouped = _grouped(c.marks, across)
    grid += [_line(f"event {kind}", SIDE * x, 0, SIDE * x, SIDE) for x, kind, _, _ in grouped]
    lines = [part for number, s in enumerate(shown) for part in _drawn(s, str(number), across, up)]
    frame = {"viewBox": f"0 0 {SIDE} {SIDE}", "preserveAspectRatio": "none", "aria-hidden": "true"}
    beside = [_text("y", f"top:{100 * (1 - y):.2f}%", short(t)) for t, y in ticks_y]
    beside += [_text("x", f"left:{100 * x:.2f}%", short(t)) for t, x in ticks_x]
    data = {"data-chart": json.dumps(_numbers(c, shown, across), separators=(",", ":"), allow_nan=False)}
    body = {"class": "plot", "tabindex": "0", "role": "img", "aria-label": _spoken(c, shown)}
    return element(
        "figure",
        {"class": "chart tall" if c.tall else "chart"},
        element("figcaption", {}, element("h3", {}, c.title), element("span", {"class": "note"}, c.note)),
        element("div", {"class": "lane"}, *[_pin(*g) for g in grouped]) if grouped else Html(""),
        element("div", body | data, element("svg", frame, *grid, *lines), *beside),
        _legend(shown) if len(shown) > 1 else Html(""),
    )


def _values(shown: Sequence[Series]) -> list[float]:
    """What the y-axis must show: all means, and the band but for its most extreme hundredth, which may run out of the picture."""
    buckets = [b for s in shown for b in s.curve if b.count]
    lows, highs = sorted(b.low for b in buckets), sorted(b.high for b in buckets)
    cut = len(buckets) // 100
    return [b.mean for b in buckets] + lows[cut:] + highs[: len(highs) - cut]


def _drawn(s: Series, number: str, across: Axis, up: Axis) -> list[Html]:
    """A line with its band, and dots where there are few values. `number`: by which the legend's button finds them."""
    parts = [b for b in s.curve if b.count]
    spots = [(SIDE * across.place(b.last), SIDE * (1 - up.place(b.mean))) for b in parts]
    out = []
    if any(b.high > b.low for b in parts):
        xs = [x for x, _ in spots]
        upper = [(x, SIDE * (1 - up.place(b.high))) for x, b in zip(xs, parts, strict=True)]
        lower = [(x, SIDE * (1 - up.place(b.low))) for x, b in zip(xs, parts, strict=True)]
        out.append(("band", _path([*upper, *reversed(lower)]) + "Z"))
    if s.smooth and len(parts) > SMOOTH:
        out.append(("line faint", _path(spots)))
        spots = [(x, SIDE * (1 - up.place(y))) for (x, _), y in zip(spots, running_mean(parts), strict=True)]
    out.append(("line dash" if s.dash else "line", _path(spots)))
    if s.points or len(spots) == 1:
        out.append(("dots", "".join(f"M{x:.1f} {y:.1f}h0" for x, y in spots)))
    return [element("path", {"class": f"{kind} c{s.colour}", "data-line": number, "d": path}) for kind, path in out]


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


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Html:
    return element("path", {"class": kind, "d": f"M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"})


def _text(kind: str, style: str, text: str) -> Html:
    return element("span", {"class": f"tick {kind}", "style": style}, text)


def _grouped(marks: Sequence[Mark], across: Axis) -> list[tuple[float, str, int, str]]:
    """(place, most serious kind, how many, their texts) of marks that lie close together."""
    cells: dict[int, list[Mark]] = {}
    for mark in marks:
        cells.setdefault(round(LANE * across.place(mark.x)), []).append(mark)
    out = []
    for held in cells.values():
        worst = min(held, key=lambda m: ("bad", "warn", "note").index(m.kind))
        texts = "\n".join(dict.fromkeys(m.text for m in held))
        out.append((across.place(worst.x), worst.kind, len(held), texts))
    return out


def _pin(x: float, kind: str, count: int, text: str) -> Html:
    label = {"bad": "✕", "warn": "!", "note": "•"}[kind] if count == 1 else str(count)
    return element("span", {"class": f"pin {kind}", "style": f"left:{100 * x:.2f}%", "title": text}, label)


def _legend(shown: Sequence[Series]) -> Html:
    def key(s: Series) -> Html:
        swatch = element("i", {"class": f"swatch c{s.colour}" + (" dash" if s.dash else "")})
        return element("li", {}, element("button", {"type": "button", "aria-pressed": "true"}, swatch, s.name))

    return element("ul", {"class": "legend"}, *[key(s) for s in shown])


def _numbers(c: Chart, shown: Sequence[Series], across: Axis) -> dict[str, object]:
    """What the script shows under the pointer: for each series x, mean, lowest and highest, rounded to five digits."""

    def rounded(value: float) -> float | None:
        return float(f"{value:.5g}") if math.isfinite(value) else None

    lines = [
        {
            "name": s.name,
            "colour": s.colour,
            "x": [b.last for b in s.curve],
            "y": [rounded(b.mean) for b in s.curve],
            "low": [rounded(b.low) for b in s.curve] if any(b.count > 1 for b in s.curve) else [],
            "high": [rounded(b.high) for b in s.curve] if any(b.count > 1 for b in s.curve) else [],
            "bad": {str(i): b.bad for i, b in enumerate(s.curve) if b.bad},
        }
        for s in shown
    ]
    marks = [{"x": m.x, "kind": m.kind, "text": m.text} for m in c.marks]
    return {
        "low": across.low,
        "high": across.high,
        "log": across.log,
        "unit": c.unit,
        "x": c.x_name,
        "lines": lines,
        "marks": marks,
    }


def _spoken(c: Chart, shown: Sequence[Series]) -> str:
    """For those who do not see it."""
    told = []
    for s in shown:
        parts = [b for b in s.curve if b.count]
        told.append(f"{s.name} from {short(parts[0].mean)} to {short(parts[-1].mean)}{c.unit}")
    return f"{c.title} over {c.x_name}: " + "; ".join(told)
